"""Item texts to vectors with a pretrained transformer: length-bucketed, mean-pooled, partly trainable.

Knows token ids and the network; where weights and tokenizers come from is :mod:`rayrank.sources.encoders`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

Train = Literal["frozen", "top", "full"]


class TextEncoder(nn.Module):
    """A Hugging Face encoder with mean pooling over the real tokens."""

    def __init__(self, network: nn.Module, width: int, pad_token: int = 0) -> None:
        super().__init__()
        self.network, self.width, self.pad_token = network, width, pad_token
        self.network.eval()  # its own dropout would depend on the process; regularisation comes from sampling items

    def encode(self, token_ids: Tensor, offsets: Tensor, rows: Tensor, max_tokens: int = 8192) -> Tensor:
        """(R, W) vectors of catalogue rows, unit length; empty texts give zeros.

        Texts are grouped by length and padded to the longest of their group only; ``max_tokens`` bounds a group's
        padded size. Gradients flow when enabled.
        """
        lengths = (offsets[1:] - offsets[:-1])[rows]
        out = torch.zeros(len(rows), self.width, device=token_ids.device)
        order = torch.argsort(lengths, stable=True)
        order = order[int((lengths == 0).sum()) :]
        pieces, places = [], []
        for bucket in _buckets(order, lengths, max_tokens):
            texts = [token_ids[int(offsets[r]) : int(offsets[r + 1])] for r in rows[bucket].tolist()]
            pieces.append(self._bucket(texts))
            places.append(bucket)
        if not pieces:
            return out
        return out.index_copy(0, torch.cat(places), torch.cat(pieces))

    def _bucket(self, texts: list[Tensor]) -> Tensor:
        ids = pad_sequence([t.long() for t in texts], batch_first=True, padding_value=self.pad_token)
        lengths = torch.tensor([len(t) for t in texts], device=ids.device)
        mask = (torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)).long()
        hidden = self.network(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)

    def set_trainable(self, train: Train, layers: int = 1) -> None:
        """Freeze everything, everything but the top ``layers``, or nothing."""
        for parameter in self.network.parameters():
            parameter.requires_grad_(train == "full")
        if train == "top":
            stack = self.network.encoder.layer  # type: ignore[union-attr]
            for layer in list(stack)[-layers:]:  # type: ignore[arg-type]
                for parameter in layer.parameters():
                    parameter.requires_grad_(True)

    def config(self) -> dict[str, Any]:
        """What :func:`build_encoder` needs to rebuild the network without its weights."""
        return dict(self.network.config.to_dict())  # type: ignore[operator, union-attr]


def build_encoder(config: Mapping[str, Any]) -> TextEncoder:
    """An encoder of the given Hugging Face configuration with fresh weights (to be loaded from a bundle)."""
    from transformers import AutoConfig, AutoModel

    kind = str(config["model_type"])
    settings = AutoConfig.for_model(kind, **{k: v for k, v in config.items() if k != "model_type"})
    network = AutoModel.from_config(settings, **({"add_pooling_layer": False} if kind == "bert" else {}))
    return TextEncoder(network, int(settings.hidden_size), int(settings.pad_token_id or 0))


def _buckets(order: Tensor, lengths: Tensor, max_tokens: int) -> list[Tensor]:
    """Consecutive runs of ``order`` (rising lengths) whose padded size is at most ``max_tokens``."""
    found, start = [], 0
    sorted_lengths = lengths[order].tolist()
    for end in range(1, len(order) + 1):
        full = end == len(order) or sorted_lengths[end] * (end + 1 - start) > max_tokens
        if full:
            found.append(order[start:end])
            start = end
    return found
