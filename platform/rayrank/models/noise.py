"""Random numbers that belong to rows, not to processes: dropout drawn from (seed, step, row key, position, site).

A generator's stream depends on what a process computed before, so the masks of a row would change with the number of
ranks or the make-up of a batch. Here every mask is a hash of what it is for. Knows nothing about models.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

_LONG_A, _LONG_B = -0x61C8864680B583EB, -0x4B47D0C5A1A6E4D5  # odd 64-bit multipliers, as signed integers
_INT_A, _INT_B = 0x7FEB352D, 0x846CA68B - 2**32  # multipliers of lowbias32 (C. Wellons), as signed integers
_POSITION = 0x632BE59BD9B4E019  # spreads positions of a sequence over the 64-bit keys


@dataclass(frozen=True)
class Noise:
    """The source of all randomness in one training step."""

    seed: int
    step: int

    def uniform(self, site: str, key: Tensor) -> Tensor:
        """One float32 in [0, 1) per entry of the int64 ``key``."""
        return (_spread(key, self._salt(site)) >> 40 & 0xFFFFFF).to(torch.float32) / 2.0**24

    def drop(self, x: Tensor, rate: float, site: str, key: Tensor) -> Tensor:
        """Dropout of the last axis of ``x``; ``key`` is int64 of ``x.shape[:-1]``. Kept entries grow by 1/(1-rate)."""
        if rate <= 0:
            return x
        rows = (_spread(key, self._salt(site)) >> 32).to(torch.int32)
        columns = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=torch.int32) * _INT_A
        bits = rows.unsqueeze(-1) ^ columns
        bits = (bits ^ (bits >> 16 & 0xFFFF)) * _INT_A
        bits = (bits ^ (bits >> 15 & 0x1FFFF)) * _INT_B
        threshold = int(-(2**31) + rate * 2**32)
        return x * (bits >= threshold).to(x.dtype).mul_(1.0 / (1.0 - rate))

    def _salt(self, site: str) -> int:
        return (zlib.crc32(site.encode()) * 0x9E3779B1 + self.seed * 0x85EBCA77 + self.step * 0xC2B2AE3D) % 2**62


def position_keys(key_B: Tensor, positions: int) -> Tensor:
    """int64 (B, positions): a key for every position of every sequence."""
    return key_B.unsqueeze(1) + _POSITION * torch.arange(1, positions + 1, device=key_B.device)


def _spread(key: Tensor, salt: int) -> Tensor:
    """A 64-bit hash of every key (the finaliser of splitmix64; Steele et al., OOPSLA 2014). Overflow wraps."""
    x = key + salt
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * _LONG_A
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * _LONG_B
    return x ^ (x >> 31 & 0x1FFFFFFFF)
