"""Peak memory of every job at growing numbers of rows: PSS summed over all processes of the job, Ray's included.

Users grow with the rows and their histories are equally long, longer than the window of what a model sees: with a
fixed number of users sequences would grow too, and with them every tensor of a step. Object store capped at 512 MB.
Every job is a process of its own, started as a user would, and sampled twice a second. The claim is the peak at the
largest size over that at the smallest, the worst job's.

    python -m benchmarks.memory [--rows 500000,2000000,10000000] [--jobs prepare,train_teacher,label]
                                [--work FOLDER]
    python -m benchmarks.memory --draw       the curve again, from the rows on record
    python -m benchmarks.memory --quick      200,000 and 800,000 rows, prepare and train_teacher; nothing is kept
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks import memory_plot, results
from benchmarks.results import ROOT, Row, Table

NAME, VERSION = "memory", 4
JOBS = ("prepare", "train_teacher", "label", "distill", "promote", "score", "evaluate")
NEEDS = {
    "train_teacher": "prepare", "label": "train_teacher", "distill": "label", "promote": "distill",
    "score": "promote", "evaluate": "distill",
}  # fmt: skip
"""The job whose output each job reads."""
OUTPUTS = {"prepare": "path", "promote": "releases"}
"""The key of a job's config that says where it writes; 'output' for all others."""
EVENTS, ITEMS = 500, 5_000
"""Events of a user, and items."""
GATES = ("gain_auc", "gain_gauc", "lift", "calibration", "latency")
LIMIT_S = 3600.0
PAPER = 100_000_000
"""Rows that are told on paper only, from the rate of the largest size that was prepared."""
TABLE = Table(
    title="Peak memory by number of rows",
    command="python -m benchmarks.memory",
    note=(
        f"Synthetic log, {EVENTS} events a user, {ITEMS:,} items: histories are equally long at every size. "
        "Peak of the PSS over all processes of the job, sampled twice a second, MB; object store capped at 512 MB. "
        "On paper: not run, the seconds and the size that follow from the rate and the bytes a row of the size above."
    ),
    labels=("job", "rows"),
    columns=("peak MB", "seconds", "rows/s", "dataset MB"),
    plot="memory.svg",
)


def configs(folder: Path, rows: int) -> dict[str, dict[str, Any]]:
    """What every job is told, by job."""
    dataset, teacher = str(folder / "dataset"), str(folder / "teacher")
    cluster, tracking = {"object_store_mb": 512}, {"kind": "none"}
    source = {"kind": "synthetic", "num_rows": rows, "num_users": rows // EVENTS, "num_items": ITEMS}
    small = {"width": 16, "id_width": 8, "taste_width": 4, "inputs": {"text": False}}
    student, releases, labels = str(folder / "student"), str(folder / "releases"), str(folder / "labels")
    both = {"dataset": dataset, "teacher": teacher, "student": student, "tracking": tracking}
    learning = {"epochs": 1, "rows": {"epochs": 1}}
    return {
        "prepare": {"source": source, "path": dataset, "engine": "ray", "cluster": cluster},
        "train_teacher": {
            "dataset": dataset, "output": teacher, "model": {"kind": "teacher", **small}, "learning": learning,
            "workers": {"count": 2}, "cluster": cluster, "tracking": tracking,
        },
        "label": {"dataset": dataset, "teacher": teacher, "output": labels, "samples": 1, "cluster": cluster},
        "distill": {
            "dataset": dataset, "teacher": teacher, "labels": labels, "output": student,
            "model": {"kind": "student", "hidden": 16, **small}, "learning": learning, "tracking": tracking,
        },
        "promote": {
            **both, "releases": releases, "gates": {"skip": list(GATES)},
        },
        "score": {
            "releases": releases, "input": {"kind": "shards", "part": "test"}, "output": str(folder / "scores"),
            "cluster": cluster,
        },
        "evaluate": {**both, "output": str(folder / "evaluate"), "resamples": 20, "cost_requests": 5},
    }  # fmt: skip


def peak_of(job: str, config: Path, log: Path) -> tuple[float, float]:
    """(peak MB, seconds) of one job in a process of its own."""
    began, peak = time.monotonic(), 0.0
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", f"jobs.{job}", str(config)], cwd=ROOT, stdout=out, stderr=out,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        )  # fmt: skip
        try:
            while process.poll() is None:
                peak = max(peak, pss_mb(process.pid))
                if time.monotonic() - began > LIMIT_S:
                    raise TimeoutError(f"{job} took more than {LIMIT_S:g} s")
                time.sleep(0.5)
        finally:
            end(process)
    if process.returncode:
        raise RuntimeError(f"{job} failed: {log.read_text(errors='replace')[-2000:]}")
    return peak, time.monotonic() - began


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that still runs, and all its descendants."""
    if process.poll() is not None:
        return
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait(timeout=30)
    psutil.wait_procs(family, timeout=30)


def pss_mb(pid: int) -> float:
    """Proportional set size of a process and all its descendants, MB: shared pages are counted once."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    return sum(_pss_kb(process.pid) for process in family) / 1024.0


def _pss_kb(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except (OSError, ProcessLookupError):
        return 0  # it has ended
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def measure(folder: Path, rows: int, jobs: Sequence[str], known: Mapping[str, Row]) -> Iterator[Row]:
    """A row for each job on one dataset, in the order in which each needs the ones before.

    What is known already and lies in the folder is not done again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for job, raw in configs(folder, rows).items():
        if job not in jobs:
            continue
        key = results.key_of(NAME, VERSION, job, rows)
        if key in known and Path(raw[OUTPUTS.get(job, "output")]).exists():
            _say(f"{rows:,} rows, {job}: there already")
            yield known[key]
            continue
        config = folder / f"{job}.yaml"
        config.write_text(json.dumps(raw), encoding="utf-8")
        peak, seconds = peak_of(job, config, folder / f"{job}.log")
        _say(f"{rows:,} rows, {job}: {peak:,.0f} MB, {seconds:.0f} s")
        size = size_mb(folder / "dataset") if job == "prepare" else None
        values = {"peak MB": peak, "seconds": seconds, "rows/s": rows / seconds, "dataset MB": size}
        yield Row(key=key, table=NAME, arm=(job, f"{rows:,}"), seconds=seconds, values=values, **results.stamp())


def on_paper(made: Row) -> Row:
    """What preparing :data:`PAPER` rows would take by the rate and the size that were measured."""
    rate, size = made.values["rows/s"], made.values["dataset MB"]
    assert rate is not None
    assert size is not None
    rows = rate * (made.seconds or 0.0)
    values = {"seconds": PAPER / rate, "rows/s": rate, "dataset MB": size * PAPER / rows}
    key = results.key_of(NAME, VERSION, "prepare, on paper", PAPER)
    return Row(key=key, table=NAME, arm=("prepare, on paper", f"{PAPER:,}"), values=values, **results.stamp())


def size_mb(folder: Path) -> float:
    """Bytes of all files below a folder, MB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


def claims_of(found: Mapping[int, Mapping[str, Row]]) -> dict[str, Any]:
    """Peak at the largest size over that at the smallest, by job and of the worst."""
    sizes = sorted(found)
    peaks = {size: {job: row.values["peak MB"] or float("nan") for job, row in found[size].items()} for size in sizes}
    ratios = {job: peaks[sizes[-1]][job] / peak for job, peak in peaks[sizes[0]].items()}
    worst = round(max(ratios.values()), 3)
    factor = sizes[-1] / sizes[0]
    by_job = {job: round(ratio, 3) for job, ratio in ratios.items()}
    return {"rss_20x" if factor == 20 else f"rss_{factor:g}x": worst, "by_job": by_job, "rows": sizes}


def show() -> None:
    """Write the page and the curve from what is on record."""
    known = results.load()
    results.MARKDOWN.write_text(results.render(known), encoding="utf-8")
    memory_plot.draw([row for row in known.rows if row.table == NAME], results.MARKDOWN.with_name(str(TABLE.plot)))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Measure, keep the rows, print the claims."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes; nothing is kept")
    parser.add_argument("--rows", default="500000,2000000,10000000")
    parser.add_argument("--jobs", default=",".join(JOBS))
    parser.add_argument("--work", help="folder that keeps what jobs make, so that a later run goes on; default: none")
    parser.add_argument("--draw", action="store_true", help="measure nothing: draw what is on record")
    options = parser.parse_args()
    if options.draw:
        show()
        return
    sizes = [200_000, 800_000] if options.quick else [int(size) for size in options.rows.split(",")]
    jobs = ["prepare", "train_teacher"] if options.quick else options.jobs.split(",")
    lacking = [f"{job} needs {NEEDS[job]}" for job in jobs if NEEDS.get(job, job) not in jobs]
    if lacking or set(jobs) - set(JOBS):
        parser.error(f"--jobs {','.join(jobs)}: {'; '.join(lacking) or 'jobs are ' + ','.join(JOBS)}")
    found: dict[int, dict[str, Row]] = {}
    known = {} if options.quick else {row.key: row for row in results.load().rows}
    with tempfile.TemporaryDirectory(prefix="rayrank-memory-") as temporary:
        for size in sizes:
            found[size] = {}
            folder = Path(options.work or temporary).resolve() / str(size)
            for row in measure(folder, size, jobs, known):
                found[size][row.arm[0]] = row
                if not options.quick:
                    paper = [on_paper(row)] if row.arm[0] == "prepare" and size == sizes[-1] else []
                    results.record(NAME, TABLE, [row, *paper])
                    show()
            if not options.work:
                shutil.rmtree(folder)
    results.last_line({"benchmark": NAME, **claims_of(found), "quick": options.quick})


if __name__ == "__main__":
    main()
