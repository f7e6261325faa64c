"""The benchmark of training: its claims are measured, and what it is asked for is checked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.train import encoder, timing
from benchmarks.train.__main__ import CLAIMS, rows_of

ROOT = Path(__file__).resolve().parents[3]


def test_ratios_are_taken_within_a_round_and_scaled() -> None:
    found = {"slow": [4.0, 8.0, 100.0], "fast": [1.0, 4.0, 10.0]}
    assert timing.ratio(found, "slow", "fast") == 4.0
    assert timing.ratio(found, "slow", "fast", scale=2.0) == 8.0


def test_arms_run_in_turn_after_an_untimed_round() -> None:
    calls: list[str] = []
    times = timing.seconds({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3
    assert [len(times[name]) for name in "ab"] == [2, 2]


def test_operations_are_counted_by_hand() -> None:
    class Network(torch.nn.Module):
        class config:  # noqa: N801
            hidden_size, intermediate_size, num_hidden_layers = 4, 8, 2

    tokens = 2 * (4 * 16 + 2 * 32) * 5 + 4 * 4 * (9 + 4)
    assert timing.flops(np.array([3, 2]), Network()) == 2 * tokens


@pytest.mark.slow
def test_both_arms_give_the_same_vectors_and_the_claims_are_there() -> None:
    short, long = encoder.item_texts(None)
    assert len(short) == len(long) > 100
    assert encoder.bucketed_vs_padded(short, 64, 32, 1) > 0
    assert 0.9 < encoder.useful_tokens(short[:400]) <= 1.0
    assert encoder.frozen_prefix_vs_full(short, 32, 1) > 0


def test_every_claim_becomes_a_row() -> None:
    rows = rows_of("generated", {"a": 1.0, "b": 2.0})
    assert [(row.arm, row.values["value"]) for row in rows] == [(("generated", "a"), 1.0), (("generated", "b"), 2.0)]
    assert len({row.key for row in rows}) == 2


def test_a_claim_that_there_is_not_is_a_mistake() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.train", "--only", "speed"], cwd=ROOT, capture_output=True, text=True,
        timeout=120, check=False, env={"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 2
    assert all(name in done.stderr for name in CLAIMS)
