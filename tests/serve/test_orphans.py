"""Proxies that a killed service left behind are ended; those of living services and of others are not."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayrank.on_ray.orphans import OWNER, claim, end_orphans


def started(command: list[str]) -> subprocess.Popen[bytes]:
    """A process whose command line can be read: for a moment after its start it is empty."""
    job = subprocess.Popen(command, stdin=subprocess.PIPE)
    end = time.monotonic() + 30
    while command[-1].encode() not in Path(f"/proc/{job.pid}/cmdline").read_bytes():
        assert time.monotonic() < end
        time.sleep(0.01)
    return job


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A folder as a service makes it, and a program called haproxy that runs on a file of it."""
    program, folder = tmp_path / "bin" / "haproxy", tmp_path / "rr-abc"
    program.parent.mkdir()
    folder.mkdir()
    shutil.copy("/bin/bash", program)
    job = started([str(program), "-c", "read line", f"{folder}/haproxy.cfg"])
    try:
        yield folder, job
    finally:
        job.kill()
        job.wait(30)


def test_an_orphan_is_ended_and_said(tmp_path: Path, proxy: tuple[Path, subprocess.Popen[bytes]]) -> None:
    folder, job = proxy
    (folder / OWNER).write_text("4194304 17")  # no such process: numbers end below
    said: list[str] = []
    end_orphans(said.append, tmp_path)
    assert job.wait(30) != 0
    assert f"process {job.pid}" in said[0]
    assert not folder.exists()


def test_a_number_that_was_given_again_does_not_count_as_the_owner(
    tmp_path: Path, proxy: tuple[Path, subprocess.Popen[bytes]]
) -> None:
    folder, job = proxy
    (folder / OWNER).write_text(f"{os.getpid()} 1")  # this process started later than that
    end_orphans(lambda _: None, tmp_path)
    assert job.wait(30) != 0


def test_the_proxy_of_a_living_service_stays(tmp_path: Path, proxy: tuple[Path, subprocess.Popen[bytes]]) -> None:
    folder, job = proxy
    claim(folder)
    (tmp_path / "rr-unmarked").mkdir()
    said: list[str] = []
    end_orphans(said.append, tmp_path)
    time.sleep(0.2)
    assert job.poll() is None
    assert (said, folder.exists(), (tmp_path / "rr-unmarked").exists()) == ([], True, True)


def test_another_program_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "rr-xyz"
    folder.mkdir()
    (folder / OWNER).write_text("4194304 17")
    with started(["/bin/bash", "-c", "read line", f"{folder}/haproxy.cfg"]) as job:
        end_orphans(lambda _: None, tmp_path)
        time.sleep(0.2)
        assert job.poll() is None
        job.kill()
