"""The item texts of a bundle: what its encoder is measured and trained on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rayrank.bundle import Bundle
from rayrank.models.encoder import TextEncoder
from rayrank.sources.encoders import tokenise

_HELD_OUT, _SEED = 10, 0


@dataclass(frozen=True)
class Texts:
    """Texts of the catalogue back to back, with the vectors that the original encoder gives them."""

    token_ids: Tensor  # int32 (T,)
    offsets: Tensor  # int64 (N + 1,), row 0 is the unknown item
    vectors_NW: Tensor  # unit length
    learnt: Tensor  # int64: rows that may be measured and trained on
    held_out: Tensor  # int64: the others, a tenth; empty texts are in neither

    @staticmethod
    def of(bundle: Bundle) -> Texts | None:
        """The texts of a bundle with an encoder; None without one."""
        info, folder = bundle.info.encoder, bundle.tokenizer_folder
        if info is None or folder is None or bundle.text_ND is None:
            return None
        tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
        texts = ["", *(text or "" for text in bundle.items.column("text").to_pylist())]
        token_ids, offsets = tokenise(texts, tokenizer, info.max_tokens)
        rows = (offsets[1:] > offsets[:-1]).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(_SEED))]
        held = max(1, len(rows) // _HELD_OUT)
        return Texts(token_ids, offsets, bundle.text_ND, rows[held:], rows[:held])

    def encode(self, encoder: TextEncoder, rows: Tensor) -> Tensor:
        """(R, W) vectors by an encoder; gradients flow when enabled."""
        return encoder.encode(self.token_ids, self.offsets, rows)

    def cosine(self, encoder: TextEncoder, rows: Tensor) -> Tensor:
        """(R,) cosines between an encoder's vectors and the original's."""
        with torch.no_grad():
            return (self.encode(encoder, rows) * self.vectors_NW[rows]).sum(-1)
