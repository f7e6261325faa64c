"""The benchmark of memory: its example can work, and a job that takes too long ends with all it has started."""

from __future__ import annotations

import json
import re
from pathlib import Path

import psutil
import pytest

from benchmarks import memory, memory_plot, results

SLOW = """
import subprocess, sys, time
from pathlib import Path
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
Path(sys.argv[1]).with_suffix(".pid").write_text(str(child.pid))
time.sleep(60)
"""


def jobs_of(monkeypatch: pytest.MonkeyPatch, page: Path, jobs: str, *more: str) -> list[str]:
    """The jobs that a call runs at its two sizes, each of which writes what it is told to."""
    ran: list[str] = []

    def peak_of(job: str, config: Path, _log: Path) -> tuple[float, float]:
        ran.append(job)
        Path(json.loads(config.read_text())[memory.OUTPUTS.get(job, "output")]).mkdir()
        return 100.0, 1.0

    kept = memory.results.Results()

    def record(_name: str, _table: object, rows: list[memory.Row]) -> None:
        nonlocal kept
        kept = kept.model_copy(update={"rows": (*kept.rows, *rows)})

    monkeypatch.setattr(memory, "peak_of", peak_of)
    monkeypatch.setattr(memory.results, "record", record)
    monkeypatch.setattr(memory.results, "load", lambda: kept)
    monkeypatch.setattr(memory.results, "MARKDOWN", page)
    monkeypatch.setattr("sys.argv", ["memory", "--rows", "10,20", "--jobs", jobs, *more])
    memory.main()
    if more:  # the second call finds everything
        before, ran = ran, []
        memory.main()
        assert ran == []
        ran = before
    assert ran[: len(ran) // 2] == ran[len(ran) // 2 :]
    return ran[: len(ran) // 2]


def test_the_example_names_what_each_job_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (example,) = re.findall(r"--jobs ([\w,]+)", memory.__doc__ or "")
    assert jobs_of(monkeypatch, tmp_path / "results.md", example) == example.split(",")
    assert jobs_of(monkeypatch, tmp_path / "results.md", ",".join(memory.JOBS)) == list(memory.JOBS)


def test_what_lies_in_the_work_folder_is_not_measured_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = ["prepare", "train_teacher"]
    assert jobs_of(monkeypatch, tmp_path / "results.md", ",".join(jobs), "--work", str(tmp_path)) == jobs
    assert capsys.readouterr().err.count("there already") == 4


def test_a_hundred_million_rows_on_paper() -> None:
    values = {"peak MB": 9.0, "seconds": 50.0, "rows/s": 200_000.0, "dataset MB": 100.0}  # of 10 million rows
    made = memory.Row(key="k", table="memory", arm=("prepare", "10,000,000"), seconds=50.0, values=values,
                      **memory.results.stamp())  # fmt: skip
    assert memory.on_paper(made).values == {"seconds": 500.0, "rows/s": 200_000.0, "dataset MB": 1000.0}


def test_the_claim_is_the_worst_job_at_the_largest_size_over_the_smallest() -> None:
    def rows(*peaks: float) -> dict[str, memory.Row]:
        return {
            job: memory.Row(key=job, table="memory", arm=(job,), values={"peak MB": peak}, **memory.results.stamp())
            for job, peak in zip(("prepare", "label"), peaks, strict=True)
        }

    found = {500_000: rows(100.0, 200.0), 2_000_000: rows(300.0, 900.0), 10_000_000: rows(130.0, 210.0)}
    by_job = {"prepare": 1.3, "label": 1.05}
    assert memory.claims_of(found) == {"rss_20x": 1.3, "by_job": by_job, "rows": [500_000, 2_000_000, 10_000_000]}
    assert memory.claims_of({10: rows(1.0, 1.0), 40: rows(2.0, 1.0)})["rss_4x"] == 2.0


@pytest.mark.parametrize(
    ("jobs", "message"),
    [("prepare,train_teacher,label,distill,score", "score needs promote"), ("prepare,bake", "jobs are prepare,")],
)
def test_jobs_that_cannot_work_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], jobs: str, message: str
) -> None:
    with pytest.raises(SystemExit):
        jobs_of(monkeypatch, Path("unused.md"), jobs)
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


def test_the_curve_has_a_line_for_every_job_of_several_sizes(tmp_path: Path) -> None:
    def row(job: str, rows: int, peak: float | None) -> memory.Row:
        values = {"peak MB": peak}
        return memory.Row(key=f"{job}{rows}", table="memory", arm=(job, f"{rows:,}"), values=values, **results.stamp())

    rows = [row("label", 10_000_000, 1100.0), row("label", 500_000, 1000.0), row("score", 500_000, 900.0)]
    rows.append(row("prepare, on paper", 100_000_000, None))
    assert memory_plot.curves(rows) == {"label": [(500_000, 1000.0), (10_000_000, 1100.0)]}
    memory_plot.draw(rows, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert ">label<" in text
    assert ">500k<" in text
    assert ">score<" not in text
    memory_plot.draw(reversed(rows), tmp_path / "b.svg")
    assert (tmp_path / "b.svg").read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svg", "b.svg"]
