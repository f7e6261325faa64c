"""What Ray Train costs a training run once it runs: its epochs against those of the same loop in one plain process.

Every run is a process of its own that trains the default teacher on a generated log, texts encoded beforehand. The
plain loop reads its shards directly; Ray's workers are fed by Ray Data, as in the jobs. Arms in turn; of a run the
first epoch does not count, in which all starts and caches fill. The order of rows depends on the seed alone, so both
arms must end with the same metrics; that is asserted.

    python -m benchmarks.ray_train [--rounds 3]
    python -m benchmarks.ray_train --quick      a small log, one round; nothing is kept
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import results
from benchmarks.results import ROOT, Row, Table
from rayrank.config import parse
from rayrank.sources.build import build, run_here
from rayrank.sources.spec import BuildSpec

NAME, VERSION = "ray_train", 1
SOURCE = {"kind": "synthetic", "num_rows": 200_000, "num_users": 2_000, "num_items": 2_000}
QUICK = {**SOURCE, "num_rows": 10_000, "num_users": 200, "num_items": 300}
ARMS: Mapping[str, tuple[int, int]] = {"plain, 1 thread": (0, 1), "1 worker": (1, 1), "plain, 2 threads": (0, 2),
                                       "2 workers": (2, 1)}  # fmt: skip
"""Arm -> (workers, 0 without Ray; torch threads of each process)."""
CLAIMS = {"ray_1w_vs_plain": ("plain, 1 thread", "1 worker"), "ray_2w_vs_plain": ("plain, 2 threads", "2 workers")}
"""Ratio of events a second, second arm to first: of seconds for the same epochs, first to second."""
SAME = 1e-3
"""Differences of metrics that the order of additions may cause; two ranks add gradients in another order."""
LIMIT_S = 900.0
TABLE = Table(
    title="Training under Ray",
    command="python -m benchmarks.ray_train",
    note=(
        "Default teacher (frozen encoder, texts encoded before) on a generated log of 200,000 rows, second stage only. "
        "Events a second with Ray Train and Ray Data ÷ those of the same loop in one process without Ray, after the "
        "first epoch; arms in turn, equal metrics asserted, medians over rounds and their range. Load: average over "
        "the last minute."
    ),
    labels=("claim",),
    columns=("value", "least", "most", "seconds an epoch, plain", "seconds an epoch, Ray", "load"),
)


def run(folder: Path, arm: str, number: int, epochs: int) -> dict[str, Any]:
    """One training in a process of its own: what the job keeps of it.

    Raises:
        RuntimeError: the job failed.
    """
    workers, threads = ARMS[arm]
    output = folder / f"run-{number}-{workers}-{threads}"
    config = folder / "train.yaml"
    config.write_text(
        f"dataset: {folder / 'dataset'}\ncache: {folder / 'cache'}\ntracking: {{kind: none}}\n"
        f"learning: {{epochs: {epochs}, rows: {{epochs: 0}}}}\n"
    )
    command = [
        sys.executable, "-m", "jobs.train_teacher", str(config), f"output={output}", f"workers.count={workers}",
        f"threads={threads}",
    ]  # fmt: skip
    variables = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "OMP_NUM_THREADS")}
    done = subprocess.run(
        command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{arm}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(Path(f"{output}.run.json").read_text())["result"]
    return found


def epoch_seconds(result: Mapping[str, Any]) -> float:
    """Of a usual epoch: the median of all but the first."""
    later = [float(entry["seconds"]) for entry in result["history"][1:]]
    if not later:
        raise ValueError("two epochs at least")
    return median(later)


def differing(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Metrics of two runs that are not the same, with their differences."""
    apart = {name: abs(one[name] - other.get(name, float("inf"))) for name in one}
    return {name: value for name, value in apart.items() if value > SAME}


def claims_of(rounds: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Claim -> its median ratio, the range, and both arms' seconds; a ratio is taken within a round."""
    found = {}
    for claim, (plain, ray) in CLAIMS.items():
        ratios = [times[plain] / times[ray] for times in rounds]
        found[claim] = {
            "value": median(ratios), "least": min(ratios), "most": max(ratios),
            "seconds an epoch, plain": median(times[plain] for times in rounds),
            "seconds an epoch, Ray": median(times[ray] for times in rounds),
        }  # fmt: skip
    return found


def rows_of(found: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """Rows of the results table."""
    load = os.getloadavg()[0]
    return [
        Row(
            key=results.key_of(NAME, VERSION, SOURCE, claim), table=NAME, arm=(claim,),
            values={**values, "load": load}, **results.stamp(),
        )
        for claim, values in found.items()
    ]  # fmt: skip


def measured(folder: Path, rounds: int, epochs: int) -> list[dict[str, float]]:
    """Seconds an epoch of every arm, by round.

    Raises:
        RuntimeError: two arms did not learn the same.
    """
    found = []
    for number in range(rounds):
        times, metrics = dict[str, float](), dict[str, dict[str, float]]()
        for arm in ARMS:
            result = run(folder, arm, number, epochs)
            times[arm], metrics[arm] = epoch_seconds(result), result["metrics"]
            print(f"round {number}, {arm}: {times[arm]:.2f} s an epoch", file=sys.stderr, flush=True)
        for plain, ray in CLAIMS.values():
            if apart := differing(metrics[plain], metrics[ray]):
                raise RuntimeError(f"{plain} and {ray} learned different things: {apart}")
        found.append(times)
    return found


def main() -> None:
    """Measure, keep the rows, print the claims."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small log, one round; nothing is kept")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rayrank-ray-train-") as place:
        folder = Path(place)
        source = QUICK if options.quick else SOURCE
        build(parse(BuildSpec, {"source": source, "path": str(folder / "dataset")}), run_here, lambda _: None)
        found = claims_of(measured(folder, 1 if options.quick else options.rounds, 2 if options.quick else 4))
    if not options.quick:
        results.record(NAME, TABLE, rows_of(found))
        results.MARKDOWN.write_text(results.render(results.load()), encoding="utf-8")
    results.last_line({
        "benchmark": NAME, **{claim: round(values["value"], 3) for claim, values in found.items()}, "claims": found,
        "quick": options.quick,
    })  # fmt: skip


if __name__ == "__main__":
    main()
