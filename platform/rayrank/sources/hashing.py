"""Hashes that are the same on every machine and in every run; knows nothing about what is hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def text_hash(texts: Sequence[str]) -> np.ndarray:
    """A 64-bit hash of each text, uint64."""
    digests = b"".join(hashlib.blake2b(t.encode(), digest_size=8).digest() for t in texts)
    return np.frombuffer(digests, dtype="<u8").copy()


def mix(values: np.ndarray, salt: int) -> np.ndarray:
    """A second, independent 64-bit hash of integers (SplitMix64's finaliser, Steele et al. 2014), uint64."""
    with np.errstate(over="ignore"):
        x = values.astype(np.uint64) + np.uint64((salt * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def unit(values: np.ndarray, salt: int) -> np.ndarray:
    """A number in [0, 1) from each hash, float64."""
    return (mix(values, salt) >> np.uint64(11)).astype(np.float64) / float(1 << 53)
