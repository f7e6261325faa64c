"""Arms in turn, medians, and the texts that encoders are timed on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import Tensor

from rayrank.sources.encoders import LoadedEncoder, PackageEncoder, resolve_encoder, tokenise


def seconds(arms: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Wall seconds of every arm, round by round in turn; one untimed round first."""
    found: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name, work in arms.items():
            began = time.perf_counter()
            work()
            if number:
                found[name].append(time.perf_counter() - began)
    return found


def ratio(found: Mapping[str, list[float]], slow: str, fast: str, scale: float = 1.0) -> float:
    """Median over the rounds of how many times faster ``fast`` was than ``slow``; ``scale``: its work over theirs."""
    return median(a / b * scale for a, b in zip(found[slow], found[fast], strict=True))


@dataclass(frozen=True)
class Texts:
    """Tokenised texts, with the encoder that they are for."""

    loaded: LoadedEncoder
    token_ids: Tensor
    offsets: Tensor

    @staticmethod
    def of(texts: list[str], max_tokens: int) -> Texts:
        """Through the packaged MiniLM."""
        loaded = resolve_encoder(PackageEncoder(max_tokens=max_tokens))
        assert loaded is not None
        return Texts(loaded, *tokenise(texts, loaded.tokenizer_json, max_tokens))

    @property
    def lengths(self) -> Tensor:
        """Tokens of each text."""
        return self.offsets[1:] - self.offsets[:-1]

    def padded(self, width: int) -> tuple[Tensor, Tensor]:
        """(N, width) token ids and attention mask, as tokenisers give them with ``padding='max_length'``."""
        mask = torch.arange(width) < self.lengths.unsqueeze(1)
        ids = torch.zeros(mask.shape, dtype=torch.long)
        ids[mask] = self.token_ids.long()
        return ids, mask.long()


def flops(lengths: np.ndarray, network: torch.nn.Module) -> float:
    """Multiplications and additions of a forward pass over texts of these lengths, matrix products only."""
    c = network.config
    per_token = 2 * (4 * c.hidden_size**2 + 2 * c.hidden_size * c.intermediate_size)  # type: ignore[union-attr, operator]
    attention = 4 * lengths.astype(np.float64) ** 2 * c.hidden_size  # type: ignore[union-attr, operator]
    return float(c.num_hidden_layers * (per_token * lengths.sum() + attention.sum()))  # type: ignore[union-attr, operator]
