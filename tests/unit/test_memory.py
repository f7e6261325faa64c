"""Freed memory is given back on the way, when it is time and when the process has grown."""

from __future__ import annotations

import numpy as np
import pytest

from rayrank import memory


def released(monkeypatch: pytest.MonkeyPatch, seconds: float, sizes: list[int]) -> int:
    """How often memory is given back over items ``seconds`` apart, at which the process has these sizes, bytes."""
    clock, times = iter(range(1000)), 0

    def release() -> None:
        nonlocal times
        times += 1

    looked = iter(sizes)
    monkeypatch.setattr(memory.time, "monotonic", lambda: next(clock) * seconds)
    monkeypatch.setattr(memory, "_own", lambda: next(looked, sizes[-1]))
    monkeypatch.setattr(memory, "release", release)
    assert list(memory.releasing(range(8))) == list(range(8))
    return times


def test_memory_is_given_back_when_it_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert released(monkeypatch, 2.1, [1]) == 8
    assert released(monkeypatch, 0.25, [1]) == 0


def test_memory_is_given_back_when_the_process_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    grown = 10 * memory._GAPS
    assert released(monkeypatch, 0.25, [1, 1, grown, 1]) == 1
    assert released(monkeypatch, 0.01, [1, 1, grown, 1]) == 0  # not so soon after the last time


def test_a_process_knows_its_own_size() -> None:
    before = memory._own()
    filled = np.ones(8 * 2**20)
    assert memory._own() - before > filled.nbytes // 2
