"""The benchmark of memory: its example can work, and a job that takes too long ends with all it has started."""

from __future__ import annotations

import re
from pathlib import Path

import psutil
import pytest

from benchmarks import memory

SLOW = """
import subprocess, sys, time
from pathlib import Path
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
Path(sys.argv[1]).with_suffix(".pid").write_text(str(child.pid))
time.sleep(60)
"""


def jobs_of(monkeypatch: pytest.MonkeyPatch, jobs: str) -> list[str]:
    """The jobs that a call would run at each of its two sizes."""
    called: list[list[str]] = []

    def measure(_folder: Path, _rows: int, asked: list[str]) -> dict[str, tuple[float, float]]:
        called.append(list(asked))
        return dict.fromkeys(asked, (100.0, 1.0))

    monkeypatch.setattr(memory, "measure", measure)
    monkeypatch.setattr(memory.results, "record", lambda *_: None)
    monkeypatch.setattr(memory.results, "MARKDOWN", Path("/dev/null"))
    monkeypatch.setattr("sys.argv", ["memory", "--rows", "10,20", "--jobs", jobs])
    memory.main()
    return called[0]


def test_the_example_names_what_each_job_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"--jobs ([\w,]+)", memory.__doc__ or "")
    assert jobs_of(monkeypatch, example) == example.split(",")
    assert jobs_of(monkeypatch, ",".join(memory.JOBS)) == list(memory.JOBS)


@pytest.mark.parametrize(
    ("jobs", "message"),
    [("prepare,train_teacher,label,distill,score", "score needs promote"), ("prepare,bake", "jobs are prepare,")],
)
def test_jobs_that_cannot_work_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], jobs: str, message: str
) -> None:
    with pytest.raises(SystemExit):
        jobs_of(monkeypatch, jobs)
    assert message in capsys.readouterr().err


def test_every_need_is_told_before_the_job(tmp_path: Path) -> None:
    told = memory.configs(tmp_path, 10)
    assert tuple(told) == memory.JOBS
    for job, need in memory.NEEDS.items():
        assert memory.JOBS.index(need) < memory.JOBS.index(job)


def test_a_time_out_ends_the_jobs_children_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__init__.py").touch()
    (tmp_path / "jobs" / "slow.py").write_text(SLOW)
    monkeypatch.setattr(memory, "ROOT", tmp_path)
    monkeypatch.setattr(memory, "LIMIT_S", 1.5)
    with pytest.raises(TimeoutError, match="slow took more than"):
        memory.peak_of("slow", tmp_path / "slow.yaml", tmp_path / "slow.log")
    child = int((tmp_path / "slow.pid").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
