"""What tuned task weights and distillation settings gain over the default ones, with equal compute, on held-out test.

Both arms train the same number of students of the same recipe on the same teacher's labels, take the one that is best
on valid by the same score, and distil it: the tuned arm varies weights, temperature and the weight of unseen items, the
default arm the seed alone. So the default arm too may choose among as many students. The score is the sum over event
tasks of AUC, or less RMSE as a share of the label's range. Teachers and labels are those of `benchmarks.quality_ml1m`,
found again where its work folder holds them.

    python -m benchmarks.tuned_gain [--seeds 0,1,2,3,4] [--trials 8] [--data FOLDER] [--work FOLDER]
    python -m benchmarks.tuned_gain --quick     two seeds of three trials on synthetic data; nothing is kept
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks import results
from benchmarks.quality_ml1m import Runner, Setting, full, quick, say
from benchmarks.results import ROOT, Row, Table
from rayrank.config import load, parse, replace
from rayrank.pipeline.comparison import Asked, compared
from rayrank.pipeline.distill import DistillConfig, distill
from rayrank.pipeline.prepare import PrepareConfig, prepare
from rayrank.pipeline.tune import TuneConfig, tune
from rayrank.schema import BinaryTask, DatasetSchema
from rayrank.sources.dataset import Dataset

NAME, VERSION = "tuned_gain", 1
ARMS = ("default", "tuned")


def judged_by(schema: DatasetSchema) -> dict[str, tuple[str, float]]:
    """Event task -> (metric, factor that makes more better and ranges equal)."""
    return {
        task.name: ("auc", 1.0) if isinstance(task, BinaryTask) else ("rmse", -1.0 / (task.high - task.low))
        for task in schema.event_tasks
    }


def search_of(arm: str, student: DistillConfig, schema: DatasetSchema, seed: int, trials: int) -> TuneConfig:
    """The search of an arm."""
    terms = [
        {"metric": f"streaming/{task}/{metric}", "weight": abs(factor)}
        for task, (metric, factor) in judged_by(schema).items()
    ]
    samplers: dict[str, Any] = {"learning.seed": {"kind": "grid", "values": [100 * seed + n for n in range(trials)]}}
    if arm == "tuned":
        even = 1.0 / len(schema.tasks)
        weight = {"kind": "loguniform", "low": 0.3 * even, "high": 4.0 * even}
        samplers = {f"objective.weights.{task.name}": weight for task in schema.event_tasks}
        samplers["objective.distillation.temperature"] = {"kind": "loguniform", "low": 1.0, "high": 4.0}
        samplers["objective.distillation.unseen"] = {"kind": "loguniform", "low": 0.2, "high": 2.0}
    raw = {
        "distill": student.model_dump(mode="json"),
        "output": f"{student.output}.{arm}-of-{trials}",
        "samplers": samplers,
        "trials": trials,
        "search": {
            "goal": {"kind": "weighted", "terms": terms},
            "algorithm": {"kind": "random" if arm == "tuned" else "grid"},
            "seed": seed,
        },
        "tracking": {"kind": "none"},
    }
    return parse(TuneConfig, raw)


def measure(runner: Runner, arm: str, seed: int, trials: int) -> dict[str, float]:
    """Test metrics of the student that the arm's search ends with; everything that is there is found again."""
    schema = runner.dataset.schema
    runner.train("distilled student", seed)  # its teacher and labels
    config = search_of(arm, runner.student("distilled student", seed), schema, seed, trials)
    found = tune(config, say)
    winner = replace(load(DistillConfig, found.best_yaml), {"output": f"{config.output}/student"})
    bundle = distill(winner, say).bundle
    asked = Asked({arm: bundle}, protocols=("streaming",), baselines=False, resamples=20)
    (entry,) = compared(runner.dataset, asked, say).entries
    return {f"{task} {m}": float(entry.metrics[f"{task}/{m}"]) for task, (m, _) in judged_by(schema).items()}


def key_of(runner: Runner, arm: str, seed: int, trials: int) -> str:
    """Of a row: what makes the student that both arms begin with, and the arm's search: its space, goal, algorithm."""
    student = runner.student("distilled student", seed)
    search = search_of(arm, student, runner.dataset.schema, seed, trials)
    asked = search.model_dump(mode="json", include={"samplers", "trials", "search"})
    return results.key_of(VERSION, runner.key("distilled student", seed, "streaming"), arm, asked)


def gains(rows: Sequence[Mapping[str, Mapping[str, float]]], schema: DatasetSchema) -> dict[str, list[float]]:
    """Task -> points of a hundred that the tuned arm is better by in each seed; ``rows``: arm -> column -> value."""
    return {
        task: [100 * factor * (row["tuned"][f"{task} {m}"] - row["default"][f"{task} {m}"]) for row in rows]
        for task, (m, factor) in judged_by(schema).items()
    }


def claims_of(found: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Mean over tasks and seeds in points; each task's; those that lost on the mean over seeds."""
    by_task = {task: round(mean(values), 3) for task, values in found.items()}
    seeds = [mean(values) for values in zip(*found.values(), strict=True)]
    return {
        "tuned_gain": round(mean(seeds), 3),
        "tuned_gain_sd": round(stdev(seeds), 3) if len(seeds) > 1 else None,
        "by_task": by_task,
        "worse_on": [task for task, value in by_task.items() if value < 0],
    }


def run(setting: Setting, trials: int) -> dict[str, Any]:
    """Compute the rows that are missing and return the claims."""
    raw = {"source": dict(setting.source), "path": str(setting.work / "dataset"), "engine": "local"}
    runner = Runner(setting, Dataset.open(prepare(parse(PrepareConfig, raw), say).path))
    schema = runner.dataset.schema
    columns = tuple(f"{task} {metric}" for task, (metric, _) in judged_by(schema).items())
    table = Table(
        title="Tuned against default settings, equal compute",
        command="python -m benchmarks.tuned_gain",
        note=(
            f"Dataset `{schema.name}`, test part, streaming. Each arm trains {trials} students and takes the best on "
            "valid: of sampled weights, temperature and weight of unseen items, or of seeds."
        ),
        labels=("arm",),
        columns=columns,
    )
    rows: list[dict[str, Mapping[str, float]]] = []
    for seed in setting.seeds:
        rows.append({})
        for arm in ARMS:
            key = key_of(runner, arm, seed, trials)
            known = results.load(setting.file).find(key)
            if known is None:
                values: dict[str, float | None] = dict(measure(runner, arm, seed, trials))
                known = Row(key=key, table=NAME, arm=(arm,), seed=seed, values=values, **results.stamp())
                results.record(NAME, table, [known], setting.file)
            rows[-1][arm] = {name: float("nan") if v is None else v for name, v in known.values.items()}
    return {"benchmark": NAME, "dataset": schema.name, "seeds": list(setting.seeds), "trials": trials} | claims_of(
        gains(rows, schema)
    )


def main() -> None:
    """Run what is missing, bring docs/results.md up to date, print the claims."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    data = os.environ.get("RAYRANK_DATA", str(ROOT.parent / "shared" / "data"))
    parser.add_argument("--quick", action="store_true", help="small, synthetic; nothing is kept")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="comma-separated")
    parser.add_argument("--trials", type=int, default=8, help="students of each arm and seed")
    parser.add_argument("--data", default=str(Path(data) / "ml-1m"), help="folder of ratings.dat")
    parser.add_argument("--work", default=str(ROOT / "runs" / "benchmarks" / "quality_ml1m"), help="folder for bundles")
    options = parser.parse_args()
    if options.quick:
        with tempfile.TemporaryDirectory(prefix="rayrank-quick-") as folder:
            claims = run(quick(Path(folder)), 3)
    else:
        claims = run(full(options), options.trials)
        results.MARKDOWN.write_text(results.render(results.load()), encoding="utf-8")
    results.last_line(claims | {"quick": options.quick})


if __name__ == "__main__":
    main()
