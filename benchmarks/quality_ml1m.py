"""The main table: every model of the path on MovieLens-1M (users 1–2999), splits ``ml1m-user`` and ``ml1m-time``.

Popularity, recent popularity, item mean, user + item bias; id-only, undistilled and distilled student; teacher. What
distillation gives is split into the teacher's item table and its soft labels. Models are chosen on valid only (best
epoch); hyper-parameters come from ``jobs/configs/movielens``. Resumable: a row that is in docs/results.json is not
computed again, and trained bundles in the work folder are found again.

    python -m benchmarks.quality_ml1m [--split user|time] [--seeds 0,1,2] [--data FOLDER] [--work FOLDER]
    python -m benchmarks.quality_ml1m --quick     the same arms, small, on synthetic data; nothing is kept
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from benchmarks import results
from benchmarks.results import ROOT, Row, Table
from rayrank.bundle import load_bundle
from rayrank.config import C, parse, read_yaml
from rayrank.pipeline.comparison import Asked, Entry, compared, kept_lift
from rayrank.pipeline.cost import measure_cost
from rayrank.pipeline.distill import DistillConfig, distill
from rayrank.pipeline.label import LabelConfig, label
from rayrank.pipeline.prepare import PrepareConfig, prepare
from rayrank.pipeline.train_teacher import TrainTeacherConfig, train_teacher
from rayrank.schema import DatasetSchema, MulticlassTask, RegressionTask, RetrievalTask
from rayrank.sources import storage
from rayrank.sources.dataset import Dataset

NAME = "quality_ml1m"
VERSION = 3
"""Raise it when what a row means changes: rows of earlier versions are then computed again."""
ID_ONLY = {"text": False, "item_attributes": False, "user_attributes": False, "context": False}
ARMS = ("id-only student", "undistilled student", "student with item table", "distilled student", "teacher")
ALONE = ("id-only student", "undistilled student")
"""Arms that take nothing from the teacher."""
HARD = {"objective": {"distillation": None}, "learning": {"rows": {"epochs": 5}}}
"""Labels alone. Of 3, 5 and 8 epochs of rows, 5 were best on valid without unseen items, 8 with them."""
ROUNDS, REQUESTS, CANDIDATES = 10, 20, 500
PLACES = frozenset(
    {"dataset", "output", "labels", "teacher", "cache", "tracking", "cluster", "again", "parent_run"}
    | {"workers", "stream", "threads"}
)
"""Where and how a run happens, not what it computes."""


@dataclass(frozen=True)
class Setting:
    """One way to run the benchmark."""

    work: Path  # dataset, bundles and labels
    file: Path  # results are kept here
    recipes: Path  # folder of the job configs
    source: Mapping[str, Any]
    seeds: tuple[int, ...]
    title: str
    command: str
    table: str = NAME
    teacher: Mapping[str, Any] = field(default_factory=dict)  # laid over the recipe
    student: Mapping[str, Any] = field(default_factory=dict)

    def config(self, cls: type[C], job: str, *layers: Mapping[str, Any]) -> C:
        """The job's config file with layers over it, later ones winning."""
        path = self.recipes / f"{job}.yaml"
        raw = read_yaml(path) if path.is_file() else {}
        for layer in layers:
            raw = _over(raw, layer)
        return parse(cls, raw, origin=str(path.name))


@dataclass(frozen=True)
class Runner:
    """A prepared dataset and what is done with it."""

    setting: Setting
    dataset: Dataset

    def teacher(self, seed: int) -> TrainTeacherConfig:
        """The teacher of a seed."""
        own = {"cache": str(self.setting.work / "cache"), "learning": {"seed": seed}}
        here = self._here(f"teacher-{seed}") | own
        return self.setting.config(TrainTeacherConfig, "train_teacher", here, self.setting.teacher)

    def student(self, arm: str, seed: int) -> DistillConfig:
        """A student of a seed: all three have one shape; they differ in inputs and in what they learn from."""
        folder, teacher = self.setting.work, {"teacher": str(self.setting.work / f"teacher-{seed}")}
        layers: list[Mapping[str, Any]] = [{"learning": {"seed": seed}, "labels": None, "teacher": None}]
        match arm:
            case "distilled student":
                layers += [teacher | {"labels": str(folder / f"labels-{seed}")}]
            case "student with item table":  # the teacher's item vectors, but nothing of its opinions
                layers += [teacher, HARD]
            case "undistilled student":  # nothing of the teacher's
                layers += [HARD, {"model": {"kind": "student", "inputs": {"text": False}}}]
            case _:
                layers += [HARD, {"model": {"kind": "student", "inputs": ID_ONLY}}]
        here = self._here(f"{arm.replace(' ', '-')}-{seed}")
        return self.setting.config(DistillConfig, "distill", here, self.setting.student, *layers)

    def key(self, arm: str, seed: int, protocol: str) -> str:
        """Of what made a row: the data, the training configs behind it (without places) and the protocol."""
        configs: list[Any] = [recipe_of(self.teacher(seed))] if arm not in ALONE else []
        if arm != "teacher":
            configs.append(recipe_of(self.student(arm, seed)))
        return results.key_of(VERSION, self.dataset.manifest.data_fingerprint, arm, configs, seed, protocol)

    def folder(self, arm: str, seed: int) -> str:
        """Of the arm's bundle; trained when it is not there."""
        output = self.teacher(seed).output if arm == "teacher" else self.student(arm, seed).output
        return output if storage.exists(storage.join(output, "bundle.json")) else self.train(arm, seed)[0]

    def train(self, arm: str, seed: int) -> tuple[str, float]:
        """Make what the arm needs (found again when it is there): the folder of its bundle, its training seconds."""
        teacher = self.teacher(seed)
        if arm not in ALONE:
            taught = train_teacher(teacher, say)
            if arm == "teacher":
                return teacher.output, taught.seconds
        config = self.student(arm, seed)
        if config.labels:
            raw = {"dataset": config.dataset, "teacher": teacher.output, "output": config.labels, "actors": 0}
            label(parse(LabelConfig, raw), say)
        return config.output, distill(config, say).seconds

    def _here(self, name: str) -> dict[str, Any]:
        places = {"dataset": self.dataset.path, "output": str(self.setting.work / name)}
        return places | {"workers": {"count": 0}, "tracking": {"kind": "none"}}


def recipe_of(config: TrainTeacherConfig | DistillConfig) -> dict[str, Any]:
    """What a run computes, without where and how."""
    return {k: v for k, v in config.model_dump(mode="json").items() if k not in PLACES}


def run(setting: Setting) -> dict[str, Any]:
    """Compute the rows that are missing and return the claims."""
    raw = {"source": dict(setting.source), "path": str(setting.work / "dataset"), "engine": "local"}
    runner = Runner(setting, Dataset.open(prepare(parse(PrepareConfig, raw), say).path))
    schema = runner.dataset.schema
    table = Table(
        title=setting.title,
        command=setting.command,
        note=_note(runner.dataset),
        labels=("model", "protocol"),
        columns=_columns(schema),
    )
    data = runner.dataset.manifest.data_fingerprint
    if results.load(setting.file).find(results.key_of(VERSION, data, "item mean")) is None:
        found = compared(runner.dataset, Asked({}), say)
        keys = [results.key_of(VERSION, data, entry.model) for entry in found.entries]
        rows = [_row(setting.table, key, entry, None, schema) for key, entry in zip(keys, found.entries, strict=True)]
        results.record(setting.table, table, rows, setting.file)
    for seed in setting.seeds:
        for arm in ARMS:
            _measure(runner, table, arm, seed)
        _time(runner, table, seed)
    return _claims(runner)


def _measure(runner: Runner, table: Table, arm: str, seed: int) -> None:
    keys = {protocol: runner.key(arm, seed, protocol) for protocol in ("snapshot", "streaming")}
    known = results.load(runner.setting.file)
    if all(known.find(key) for key in keys.values()):
        say(f"{arm}, seed {seed}: there already")
        return
    say(f"{arm}, seed {seed}: training")
    bundle, seconds = runner.train(arm, seed)
    asked = Asked({arm: bundle}, baselines=False, resamples=20)
    entries = compared(runner.dataset, asked, say).entries
    schema = runner.dataset.schema
    rows = [_row(runner.setting.table, keys[e.protocol], e, seed, schema, seconds) for e in entries]
    results.record(runner.setting.table, table, rows, runner.setting.file)


def _time(runner: Runner, table: Table, seed: int) -> None:
    """Candidates/s of a seed's models, in turn on the same requests, so that load meets them alike."""
    keys = {(arm, p): runner.key(arm, seed, p) for arm in ARMS for p in ("snapshot", "streaming")}
    known = results.load(runner.setting.file)
    rows = {place: row for place, key in keys.items() if (row := known.find(key))}
    if all(row.values.get("candidates/s") for row in rows.values()):
        return
    say(f"seed {seed}: timing")
    bundles = {arm: load_bundle(runner.folder(arm, seed)) for arm in ARMS}
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _ in range(ROUNDS):
        for arm, bundle in bundles.items():
            seconds[arm] += measure_cost(bundle, runner.dataset, CANDIDATES, REQUESTS).seconds
    rates = {arm: CANDIDATES / median(found) for arm, found in seconds.items()}
    timed = [row.model_copy(update={"values": row.values | {"candidates/s": rates[a]}}) for (a, _), row in rows.items()]
    results.record(runner.setting.table, table, timed, runner.setting.file)


def _row(
    table: str, key: str, entry: Entry, seed: int | None, schema: DatasetSchema, seconds: float | None = None
) -> Row:
    values: dict[str, float | None] = {}
    for column, name in _names(schema).items():
        value = entry.metrics.get(name)
        values[column] = None if value is None or value != value else float(value)
    values["parameters"] = float(entry.parameters)
    values["candidates/s"] = None  # timed in turn, when all models of the seed are there
    arm = (entry.model, entry.protocol)
    return Row(key=key, table=table, arm=arm, seed=seed, values=values, seconds=seconds, **results.stamp())


def _names(schema: DatasetSchema) -> dict[str, str]:
    """Column -> metric, for the first task of each kind."""
    retrieval, regression = schema.of_kind(RetrievalTask), schema.of_kind(RegressionTask)
    judged = retrieval[0].positive
    columns = {"AUC": "auc", "GAUC": "gauc", "LogLoss": "log_loss", "NE": "normalised_entropy", "NDCG@10": "ndcg_10"}
    named = {column: f"{judged}/{metric}" for column, metric in columns.items()}
    named |= {"calibration": f"{judged}/calibration", "RMSE": f"{regression[0].name}/rmse"}
    for task in schema.of_kind(MulticlassTask):
        named |= {f"{task.name} accuracy": f"{task.name}/accuracy", f"{task.name} majority": f"{task.name}/majority"}
    return named | {"Recall@100": f"{retrieval[0].name}/recall_100"}


def _columns(schema: DatasetSchema) -> tuple[str, ...]:
    return (*_names(schema), "parameters", "candidates/s")


def _note(dataset: Dataset) -> str:
    counts = dataset.manifest.counts
    return (
        f"Dataset `{dataset.schema.name}`, test part: {counts.test:,} targets of {counts.active_users:,} users. Models "
        "are chosen on valid only. Snapshot: a user's state stops before the first test event; streaming: every "
        "strictly earlier request is visible with its labels. GAUC: users with both classes, weighted by rows. "
        "NDCG@10: users with a positive, linear gain, ties averaged. Profile accuracy: users hidden in training, "
        "beside the majority class. Mean ± standard deviation over seeds; candidates/s on one thread, requests of "
        "500, models in turn. All students have one shape. The undistilled one takes nothing from the teacher (and "
        "so has no text), the one with item table has the teacher's item vectors; the distilled one also the teacher's "
        "opinion of items sampled from the catalogue."
    )


def _claims(runner: Runner) -> dict[str, Any]:
    rows = {
        (r.arm, r.seed): r.values for r in results.load(runner.setting.file).rows if r.table == runner.setting.table
    }
    seeds = runner.setting.seeds

    def values(arm: str, protocol: str, column: str) -> list[float]:
        return [float(rows[(arm, protocol), seed][column] or float("nan")) for seed in seeds]

    teacher, student, table, plain = (
        values(arm, "streaming", "AUC")
        for arm in ("teacher", "distilled student", "student with item table", "undistilled student")
    )
    found = {
        "teacher_streaming_auc": teacher,
        "teacher_streaming_rmse": values("teacher", "streaming", "RMSE"),
        "teacher_snapshot_gauc": values("teacher", "snapshot", "GAUC"),
        "student_keeps_lift": [kept_lift(s, t) for s, t in zip(student, teacher, strict=True)],
        "distilled_over_undistilled_auc": [s - p for s, p in zip(student, plain, strict=True)],
        "of_that_item_table": [t - p for t, p in zip(table, plain, strict=True)],
        "of_that_soft_labels": [s - t for s, t in zip(student, table, strict=True)],
        "student_speedup": [
            s / t
            for s, t in zip(
                values("distilled student", "streaming", "candidates/s"),
                values("teacher", "streaming", "candidates/s"),
                strict=True,
            )
        ],
    }
    claims: dict[str, Any] = {"benchmark": NAME, "dataset": runner.dataset.schema.name, "seeds": list(seeds)}
    for name, numbers in found.items():
        claims[name] = round(mean(numbers), 4)
        claims[f"{name}_sd"] = round(stdev(numbers), 4) if len(numbers) > 1 else None
    return claims


def _over(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """``layer`` over ``base``, nested mappings merged; a mapping of another ``kind`` replaces."""
    made = dict(base)
    for key, value in layer.items():
        old = made.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            made[key] = _over(old, value) if value.get("kind", old.get("kind")) == old.get("kind") else dict(value)
        else:
            made[key] = value
    return made


def full(options: argparse.Namespace, split: str = "user") -> Setting:
    """On MovieLens, one split, every seed asked for."""
    return Setting(
        work=Path(options.work).resolve() / split,
        file=results.JSON,
        recipes=ROOT / "jobs" / "configs" / "movielens",
        source={
            "kind": "movielens",
            "path": str(Path(options.data).resolve()),
            "split": {"kind": split, "valid": 0.1, "test": 0.1},
        },
        seeds=tuple(int(seed) for seed in options.seeds.split(",")),
        title=f"Quality on MovieLens-1M (users 1–2999), split ml1m-{split}",
        command=f"python -m benchmarks.quality_ml1m --split {split}",
        table=NAME if split == "user" else f"{NAME}_{split}",
    )


def quick(folder: Path) -> Setting:
    """Small, on generated data, all below ``folder``."""
    short = {"epochs": 8, "batch_events": 1024, "learning_rate": 4e-3, "patience": 3}
    return Setting(
        work=folder,
        file=folder / "results.json",
        recipes=folder,
        source={"kind": "synthetic", "num_rows": 40_000, "num_users": 1000, "num_items": 200},
        seeds=(0, 1),
        title="The same arms, small, on synthetic data",
        command="python -m benchmarks.quality_ml1m --quick",
        teacher={"model": {"kind": "teacher", "width": 32}, "encoder": {"kind": "package"}, "learning": short},
        student={"model": {"kind": "student"}, "learning": short},
    )


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    data = os.environ.get("RAYRANK_DATA", str(ROOT.parent / "shared" / "data"))
    parser.add_argument("--quick", action="store_true", help="small, synthetic, within five minutes; nothing is kept")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="comma-separated")
    parser.add_argument("--split", choices=("user", "time"), default="user", help="how the ratings are parted")
    parser.add_argument("--data", default=str(Path(data) / "ml-1m"), help="folder of ratings.dat")
    parser.add_argument("--work", default=str(ROOT / "runs" / "benchmarks" / NAME), help="folder for bundles")
    return parser


def say(line: str) -> None:
    """Tell how far it is; the last line of the output stays the claims'."""
    print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, bring docs/results.md up to date, print the claims."""
    options = _arguments().parse_args(argv)
    if options.quick:
        with tempfile.TemporaryDirectory(prefix="rayrank-quick-") as folder:
            setting = quick(Path(folder))
            claims = run(setting)
            print(results.render(results.load(setting.file)))
    else:
        claims = run(full(options, options.split))
        results.MARKDOWN.write_text(results.render(results.load()), encoding="utf-8")
    results.last_line(claims | {"quick": options.quick})


if __name__ == "__main__":
    main()
