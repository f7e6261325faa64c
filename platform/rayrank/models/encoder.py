"""Item texts to vectors with a pretrained transformer: without padding, mean-pooled, partly trainable.

Knows token ids and the network; where weights and tokenizers come from is :mod:`rayrank.sources.encoders`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from rayrank.models.compact import keep_heads
from rayrank.models.linear import multiplies_bf16, quicken
from rayrank.models.packed import KINDS, embedded, first_place, is_packable, layers_of, placed, pooled, transformed
from rayrank.models.rounded import round_weights
from rayrank.models.tuning import Additions, add_adapters

_BLOCK = 1024
"""Tokens of a block: what lies between two layers stays in the processor's cache (512 to 1,024 measured best)."""


class TextEncoder(nn.Module):
    """A Hugging Face encoder with mean pooling over the real tokens."""

    def __init__(self, network: nn.Module, width: int, pad_token: int = 0) -> None:
        super().__init__()
        self.network, self.width, self.pad_token = quicken(network), width, pad_token
        self.packed = is_packable(network)
        self.additions: Additions | None = None
        self.alive: Callable[[], None] = lambda: None  # called with every block of texts
        self.bf16 = False  # multiply in bfloat16 where a gradient will flow; without one always in float32
        self.frozen_layers = 0  # how many of the lowest layers, and the embeddings below them, have nothing to train
        self.network.eval()  # its own dropout would depend on the process; regularisation comes from sampling items

    def encode(self, token_ids: Tensor, offsets: Tensor, rows: Tensor, below_TW: Tensor | None = None) -> Tensor:
        """(R, W) vectors of catalogue rows, unit length; empty texts give zeros. Gradients flow when enabled.

        Texts are laid back to back in the order of their lengths; networks of another shape than BERT's get them
        padded to the longest of a few of about equal length. ``below_TW`` is what :meth:`fill_frozen_part`
        made of all tokens.
        """
        lengths = (offsets[1:] - offsets[:-1])[rows]
        out = torch.zeros(len(rows), self.width, device=token_ids.device)
        order = torch.argsort(lengths, stable=True)
        order = order[int((lengths == 0).sum()) :]
        blocks = list(runs(order, lengths[order].tolist(), self.packed))
        texts = (Tokens.of(offsets[rows[few]], lengths[few]) for few in blocks)
        pieces = []
        for text, x_TW in self._inputs(token_ids, texts, below_TW):
            self.alive()
            with self._autocast(token_ids.device):
                pieces.append(self._pooled(token_ids, text, x_TW, below_TW is not None).float())
        if not pieces:
            return out
        return out.index_copy(0, torch.cat(blocks), functional.normalize(torch.cat(pieces), dim=-1))

    def fill_frozen_part(self, token_ids: Tensor, offsets: Tensor, rows: Tensor, out_TW: Tensor) -> None:
        """Put what the layers that are not trained make of the tokens of some texts into their rows of ``out_TW``."""
        lengths, layers = (offsets[1:] - offsets[:-1])[rows], layers_of(self.network)[: self.frozen_layers]
        order = torch.argsort(lengths, stable=True)
        order = order[int((lengths == 0).sum()) :]
        with torch.no_grad():
            for few in runs(order, lengths[order].tolist(), packed=True):
                self.alive()
                text = Tokens.of(offsets[rows[few]], lengths[few])
                x_TW = embedded(self.network, token_ids[text.at_T].long(), text.place_T)
                out_TW[text.at_T.to(out_TW.device)] = transformed(layers, x_TW, text.groups).to(out_TW.device)

    def multiplies_bf16(self, device: torch.device) -> bool:
        """Whether bfloat16 pays: on a CPU attention and backward products of other networks than BERT's are slow."""
        return multiplies_bf16(device) and (self.packed or device.type != "cpu")

    def words(self, ids_T: Tensor) -> Tensor:
        """(T, W) what stands for tokens before anything is known of their places."""
        return self.network.get_input_embeddings()(ids_T)  # type: ignore[no-any-return, operator]

    def bags(self, ids_T: Tensor, first_N: Tensor) -> Tensor:
        """(N, W) mean of the :meth:`words` of N texts back to back, of unit length; an empty one gives zeros."""
        weight: Tensor = self.network.get_input_embeddings().weight  # type: ignore[operator]
        return functional.normalize(functional.embedding_bag(ids_T, weight, first_N), dim=-1)

    def read(self, words_TW: Tensor, lengths: Tensor) -> Tensor:
        """(T, W) states of texts that lie back to back, given as :meth:`words`; ``lengths`` rise and none is 0."""
        self.alive()
        if self.packed:
            text = Tokens.of(lengths.cumsum(0) - lengths, lengths)
            with self._autocast(words_TW.device):
                x_TW = placed(self.network, words_TW, text.place_T)
                return transformed(layers_of(self.network), x_TW, text.groups).float()
        x_NTW = pad_sequence(list(words_TW.split(lengths.tolist())), batch_first=True)
        mask = torch.arange(x_NTW.shape[1], device=lengths.device) < lengths.unsqueeze(1)
        with self._autocast(words_TW.device):
            found: Tensor = self.network(inputs_embeds=x_NTW, attention_mask=mask.long()).last_hidden_state
        return found[mask].float()

    @property
    def longest(self) -> int | None:
        """Most tokens that a text may have; None where the network sets no bound."""
        places = getattr(self.network.config, "max_position_embeddings", None)
        return None if places is None else int(places) - (first_place(self.network) if self.packed else 0)

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bf16 and torch.is_grad_enabled())

    def _inputs(
        self, token_ids: Tensor, texts: Iterable[Tokens], below_TW: Tensor | None
    ) -> Iterator[tuple[Tokens, Tensor | None]]:
        """What the lowest layer that computes reads of each block; None where the library's own network does it all.

        With gradients all words are looked up at once: a gradient of the word table is as large as the table, and
        one for each block costs as much as a layer.
        """
        if self.packed and below_TW is None and torch.is_grad_enabled():
            if texts := list(texts):
                at_T, place_T = torch.cat([text.at_T for text in texts]), torch.cat([text.place_T for text in texts])
                x_TW = embedded(self.network, token_ids[at_T].long(), place_T)
                yield from zip(texts, x_TW.split([len(text.at_T) for text in texts]), strict=True)
            return
        for text in texts:
            if not self.packed:
                yield text, None
            elif below_TW is not None:
                yield text, below_TW[text.at_T]
            else:
                yield text, embedded(self.network, token_ids[text.at_T].long(), text.place_T)

    def _pooled(self, token_ids: Tensor, text: Tokens, x_TW: Tensor | None, half_way: bool) -> Tensor:
        if x_TW is None:
            return self._padded(token_ids, text)
        layers = layers_of(self.network)[self.frozen_layers if half_way else 0 :]
        return pooled(transformed(layers, x_TW, text.groups), text.groups)

    def _padded(self, token_ids: Tensor, text: Tokens) -> Tensor:
        ids, mask = padded(token_ids, text, self.pad_token)
        hidden = self.network(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1)

    def merge(self) -> None:
        """Add low-rank additions to the weights they were trained beside; nothing to do without any."""
        if self.additions:
            self.additions.merge()
            self.additions = None

    def config(self) -> dict[str, Any]:
        """What :func:`build_encoder` needs to rebuild the network without its weights."""
        return dict(self.network.config.to_dict())  # type: ignore[operator, union-attr]


def build_encoder(config: Mapping[str, Any]) -> TextEncoder:
    """An encoder of the given Hugging Face configuration with fresh weights (to be loaded from a bundle)."""
    from transformers import AutoConfig, AutoModel

    kind = str(config["model_type"])
    settings = AutoConfig.for_model(kind, **{k: v for k, v in config.items() if k != "model_type"})
    network = AutoModel.from_config(settings, **({"add_pooling_layer": False} if kind in KINDS else {}))
    if kept := config.get("kept_heads"):
        keep_heads(network, [torch.arange(kept)] * len(layers_of(network)))
    if adapters := config.get("adapters"):
        add_adapters(network, adapters["width"], adapters["layers"])
    encoder = TextEncoder(network, int(settings.hidden_size), int(settings.pad_token_id or 0))
    if rounding := config.get("rounding"):
        round_weights(network, rounding)
    return encoder


@dataclass(frozen=True)
class Tokens:
    """Where the tokens of some texts of rising length lie."""

    at_T: Tensor  # int64, among all tokens
    place_T: Tensor  # int64, in their text
    groups: list[tuple[int, int]]  # (texts, tokens of each), in order

    @staticmethod
    def of(starts: Tensor, lengths: Tensor) -> Tokens:
        first = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
        place_T = torch.arange(len(first), device=first.device) - first
        length, count = torch.unique_consecutive(lengths, return_counts=True)
        groups = list(zip(count.tolist(), length.tolist(), strict=True))
        return Tokens(torch.repeat_interleave(starts, lengths) + place_T, place_T, groups)


def padded(token_ids: Tensor, text: Tokens, pad_token: int) -> tuple[Tensor, Tensor]:
    """Some texts as (ids (B, T), mask (B, T)), both int64, filled up to the longest."""
    lengths = torch.cat([text.at_T.new_full((count,), length) for count, length in text.groups])
    texts = [t.long() for t in token_ids[text.at_T].split(lengths.tolist())]
    ids = pad_sequence(texts, batch_first=True, padding_value=pad_token)
    return ids, (torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)).long()


def runs(order: Tensor, lengths: list[int], packed: bool) -> Iterator[Tensor]:
    """Consecutive pieces of ``order`` (rising ``lengths``) of about ``_BLOCK`` tokens, padding included."""
    start, size = 0, 0
    for end, length in enumerate(lengths, 1):
        size = size + length if packed else length * (end - start)
        following = lengths[end] if end < len(order) else 0
        grown = size + following if packed else following * (end + 1 - start)
        if end == len(order) or grown > _BLOCK:
            yield order[start:end]
            start, size = end, 0
