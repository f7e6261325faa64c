"""Freed memory is given back on the way, when it is time and when the process has grown."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rayrank import memory


def released(monkeypatch: pytest.MonkeyPatch, sizes: list[int], apart_s: float, takes_s: float = 0.005) -> int:
    """How often memory is given back over 20 items; at each look the process has the next of these sizes, bytes."""
    now, times, looked = 0.0, 0, iter(sizes)

    def release() -> None:
        nonlocal now, times
        now, times = now + takes_s, times + 1

    monkeypatch.setattr(memory.time, "monotonic", lambda: now)
    monkeypatch.setattr(memory.time, "thread_time", lambda: now)
    monkeypatch.setattr(memory, "_own", lambda: next(looked, sizes[-1]))
    monkeypatch.setattr(memory, "release", release)
    for _ in memory.releasing(range(20)):
        now += apart_s
    return times


def test_memory_is_given_back_when_it_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert released(monkeypatch, [1], 2.1) == 19
    assert released(monkeypatch, [1], 0.09) == 0


def test_memory_is_given_back_when_the_process_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert released(monkeypatch, [1, 1, 10 * memory._GAPS, 1], 0.09) == 1


def test_giving_back_takes_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    growing = [n * 2 * memory._GAPS for n in range(100)]
    assert released(monkeypatch, growing, 0.09, takes_s=0.004) == 19  # 4 ms of every 90
    assert released(monkeypatch, growing, 0.09, takes_s=0.04) == 3  # 40 ms of every 800


def test_a_process_knows_its_own_size() -> None:
    before = memory._own()
    # Of its own from the system: an array may lie in pages that the process has already.
    with mmap.mmap(-1, 64 * 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        pages.write(b"x" * len(pages))
        assert memory._own() - before > len(pages) // 2


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this kernel has no huge pages")
@pytest.mark.parametrize(("told", "expected"), [(None, True), ("0", False)])
def test_large_tensors_lie_in_huge_pages_unless_the_user_has_them_off(told: str | None, expected: bool) -> None:
    # VmFlags tells what was asked for (hg); whether the kernel had such a page just then is its own affair.
    code = (
        "import rayrank, torch\n"
        "kept = torch.ones(64 * 2**20 // 4)\n"
        "flags = [line.split() for line in open('/proc/self/smaps') if line.startswith('VmFlags')]\n"
        "print(any('hg' in line for line in flags))"
    )
    name = "THP_MEM_ALLOC_ENABLE"
    environment = {key: value for key, value in os.environ.items() if key != name}
    environment |= {name: told} if told else {}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == str(expected), done.stderr


@pytest.mark.parametrize(
    ("imports", "given", "found"),
    [
        ("import rayrank, pyarrow, rayrank.sources.storage", None, "system"),
        ("import pyarrow, rayrank, rayrank.sources.storage", None, "system"),  # as in a worker of Ray
        ("import pyarrow, rayrank, rayrank.sources.storage", "mimalloc", "mimalloc"),
    ],
)
def test_arrow_allocates_where_memory_can_be_given_back_unless_told_otherwise(
    imports: str, given: str | None, found: str
) -> None:
    name = "ARROW_DEFAULT_MEMORY_POOL"
    environment = {key: value for key, value in os.environ.items() if key != name} | ({name: given} if given else {})
    program = f"{imports}; print(pyarrow.default_memory_pool().backend_name)"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == found
