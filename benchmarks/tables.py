"""A training step with id tables of millions of rows against one with thousands, at equal batches, on two ranks.

Each arm trains both stages in two processes that talk over gloo, one thread each; arms in turn, fresh processes in
every round. The batches are those of a generated log through the training iterator, except that users and items are
drawn anew, uniformly over the whole table: the hardest case, for hardly a row comes twice. Items have text vectors as
wide as MiniLM's. A step's time is from the end of one to the end of the next; what a stage does once is apart from
that, above all bringing all rows up to date at its end. Memory is the largest PSS of the two processes together.

    python -m benchmarks.tables [--rounds 5]
    python -m benchmarks.tables --quick      tables of 200,000 users, one round; nothing is kept
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from benchmarks import results
from benchmarks.memory import end, pss_mb
from benchmarks.results import ROOT, Row, Table
from rayrank.batch import Catalogue, SequenceBatch
from rayrank.config import parse
from rayrank.learning.feed import Feed
from rayrank.learning.inputs import Hooks, TrainData, TrainSpec, Used
from rayrank.learning.spec import LearningSpec, RowsSpec
from rayrank.learning.train import train
from rayrank.models.build import build_ranker
from rayrank.models.spec import Inputs, Sizes, TeacherSpec
from rayrank.on_ray.collectives import TorchCollectives
from rayrank.schema import CategoricalFeature
from rayrank.sources.build import build, run_here
from rayrank.sources.dataset import Dataset
from rayrank.sources.groups import LocalGroups, Shards
from rayrank.sources.spec import BuildSpec

NAME, VERSION = "tables", 1
WORLD, STEPS, WARM, TEXT_WIDTH = 2, 48, 8, 384
LIMIT_S = 900.0
STAGES = ("rows", "sequences")
SPEC = LearningSpec(epochs=1, rows=RowsSpec(epochs=1, steps=1))
TABLE = Table(
    title="Steps with large id tables",
    command="python -m benchmarks.tables",
    note=(
        f"Two ranks over gloo, a thread each; micro-batches of {SPEC.batch_events} events, rows stage "
        f"{SPEC.rows.batch} rows a step. Users and items of each step are drawn uniformly over the tables. Median "
        "milliseconds of a step; ratio to the small tables within a round, median over the rounds; seconds of a whole "
        "run with building the model; largest PSS of both ranks together. Load: average over the last minute."
    ),
    labels=("users / items", "stage"),
    columns=("ms per step", "ratio", "run s", "both ranks MB", "load"),
)


@dataclass(frozen=True)
class Arm:
    """Sizes of the tables."""

    users: int
    items: int
    user_table: bool = True

    @property
    def name(self) -> str:
        """As the results call it."""
        return f"{self.users:,} / {self.items:,}" + ("" if self.user_table else ", no user table")


SMALL = Arm(6_000, 4_000)
FULL = (SMALL, Arm(5_000_000, 300_000), Arm(5_000_000, 300_000, user_table=False))
QUICK = (SMALL, Arm(200_000, 60_000))


def catalogue_of(dataset: Dataset, items: int) -> Catalogue:
    """The log's items over and over, with random text vectors."""
    known = dataset.catalogue()
    rows = torch.arange(items + 1) % len(known)
    vectors = torch.nn.functional.normalize(torch.randn(items + 1, TEXT_WIDTH), dim=-1)
    features = {name: value[rows] for name, value in known.features.items()}
    return Catalogue(features, known.count_N[rows], vectors_ND=vectors)


def redrawn(steps: Iterator[list[SequenceBatch]], arm: Arm) -> Iterator[list[SequenceBatch]]:
    """The steps with other users and items, of the whole tables."""
    for number, step in enumerate(steps):
        drawn = []
        for batch in step:
            generator = torch.Generator().manual_seed(int(batch.events.key_B[0]) % 2**31 + number)
            events = batch.events
            user_B = torch.randint(1, arm.users + 1, events.user_B.shape, generator=generator)
            item_BT = torch.randint(1, arm.items + 1, events.item_BT.shape, generator=generator)
            events = replace(events, user_B=user_B, item_BT=item_BT * (events.item_BT > 0))
            drawn.append(replace(batch, events=events))
        yield drawn


def work(rank: int, arm: Arm, folder: Path, path: str) -> None:
    """One rank of one run; prints the seconds of each stage's steps, and of all."""
    torch.set_num_threads(1)
    wait = timedelta(seconds=LIMIT_S)
    store = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD, timeout=wait)
    dataset, began = Dataset.open(path), time.perf_counter()
    schema, state = dataset.schema, dataset.manifest.features
    sizes = Sizes(
        users=arm.users + 1,
        items=arm.items + 1,
        user_categories={f.name: state.users.size(f.name) for f in schema.user_features if _categorical(f)},
        item_categories={f.name: state.items.size(f.name) for f in schema.item_features if _categorical(f)},
        context_categories={f.name: state.context.size(f.name) for f in schema.context_features if _categorical(f)},
        text_width=TEXT_WIDTH,
    )
    torch.manual_seed(0)
    model = build_ranker(TeacherSpec(inputs=Inputs(user_id=arm.user_table)), schema, sizes)
    feed, ends = Feed(LocalGroups(Shards(path)), SPEC, (rank, WORLD), cache_mb=1024), dict[str, list[float]]()

    def steps(epoch: int, start: int) -> Iterator[list[SequenceBatch]]:
        return redrawn(islice(feed.steps(epoch, start), STEPS - start), arm)

    def note(used: Used) -> None:
        ends.setdefault(used.stage, []).append(time.perf_counter())

    data = TrainData(catalogue_of(dataset, arm.items), steps, STEPS)
    train(model, data, TrainSpec(SPEC), Hooks(on_used=note), TorchCollectives(LIMIT_S, LIMIT_S))
    times = {stage: [b - a for a, b in pairwise(told)] for stage, told in ends.items()}
    print(json.dumps({"steps": times, "seconds": time.perf_counter() - began}), flush=True)


def _categorical(feature: object) -> bool:
    return isinstance(feature, CategoricalFeature)


@dataclass(frozen=True)
class Run:
    """What one run of an arm took."""

    steps: dict[str, float]  # stage -> median seconds of a step
    seconds: float
    peak_mb: float


def run(arm: Arm, path: str) -> Run:
    """Both ranks of an arm, watched."""
    with tempfile.TemporaryDirectory(prefix="rayrank-ranks-") as folder:
        asked = [sys.executable, "-m", "benchmarks.tables", "--work", json.dumps([vars(arm), folder, path])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (Path(folder) / "out").open("wb") as out:
            ranks = [
                subprocess.Popen([*asked, "--rank", str(rank)], cwd=ROOT, env=environment, stdout=out)
                for rank in range(WORLD)
            ]
            try:
                peak = watched(ranks)
            finally:
                for process in ranks:
                    end(process)
        if any(process.returncode for process in ranks):
            raise RuntimeError(f"{arm.name}: a rank failed")
        told = json.loads((Path(folder) / "out").read_text(encoding="utf-8").splitlines()[-1])
    return Run({stage: median(told["steps"][stage][WARM:]) for stage in STAGES}, told["seconds"], peak)


def watched(ranks: Sequence[subprocess.Popen[bytes]]) -> float:
    """Wait for all; the largest memory that they had together, MB."""
    peak, until = 0.0, time.monotonic() + LIMIT_S
    while any(process.poll() is None for process in ranks):
        peak = max(peak, sum(pss_mb(process.pid) for process in ranks))
        if time.monotonic() > until:
            raise TimeoutError(f"two ranks took more than {LIMIT_S:g} s")
        time.sleep(0.5)
    return peak


def ratios(found: Mapping[Arm, Sequence[Run]], arm: Arm, stage: str) -> float:
    """Median over the rounds of a step's time, to that with small tables in the same round."""
    both = zip(found[arm], found[SMALL], strict=True)
    return median(large.steps[stage] / small.steps[stage] for large, small in both)


def rows_of(found: Mapping[Arm, Sequence[Run]]) -> list[Row]:
    """Rows of the results table."""
    return [
        Row(
            key=results.key_of(NAME, VERSION, vars(arm), stage), table=NAME, arm=(arm.name, stage),
            values={
                "ms per step": 1000 * median(one.steps[stage] for one in runs), "ratio": ratios(found, arm, stage),
                "run s": median(one.seconds for one in runs), "both ranks MB": median(one.peak_mb for one in runs),
                "load": os.getloadavg()[0],
            },
            **results.stamp(),
        )
        for arm, runs in found.items()
        for stage in STAGES
    ]  # fmt: skip


def claims_of(found: Mapping[Arm, Sequence[Run]]) -> dict[str, Any]:
    """The worse stage's ratio; all ratios and the memory beside it."""
    arms = list(found)
    by_stage = {arm.name: {stage: round(ratios(found, arm, stage), 3) for stage in STAGES} for arm in arms[1:]}
    memory = {arm.name: round(median(one.peak_mb for one in runs)) for arm, runs in found.items()}
    return {"step_time_large_tables": max(by_stage[arms[1].name].values()), "by_stage": by_stage, "memory_mb": memory}


def main() -> None:
    """Measure, keep the rows, print the claims."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller tables, one round; nothing is kept")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        arm, folder, path = json.loads(options.work)
        work(options.rank, Arm(**arm), Path(folder), path)
        return
    arms, rounds = (QUICK, 1) if options.quick else (FULL, options.rounds)
    found: dict[Arm, list[Run]] = {arm: [] for arm in arms}
    with tempfile.TemporaryDirectory(prefix="rayrank-tables-") as folder:
        path = f"{folder}/dataset"
        source = {"kind": "synthetic", "num_rows": 400_000, "num_users": 6_000, "num_items": 4_000}
        build(parse(BuildSpec, {"source": source, "path": path}), run_here, lambda _: None)
        for number in range(rounds):
            for arm in arms:
                found[arm].append(run(arm, path))
                print(f"round {number + 1}, {arm.name}: {found[arm][-1]}", file=sys.stderr, flush=True)
    if not options.quick:
        results.record(NAME, TABLE, rows_of(found))
        results.MARKDOWN.write_text(results.render(results.load()), encoding="utf-8")
    results.last_line({"benchmark": NAME, **claims_of(found), "quick": options.quick})


if __name__ == "__main__":
    main()
