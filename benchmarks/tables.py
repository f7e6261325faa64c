"""A training step with id tables of millions of rows against one with thousands, at equal batches, on two ranks.

Two processes that talk over gloo, one thread each, train two arms through both stages, small tables and others, a few
steps of the one and then of the other; so whatever else the machine does slows both. The batches are those of a
generated log through the training iterator, except that users and items are drawn anew, uniformly over the whole
table: the hardest case, for hardly a row comes twice. Items have text vectors as wide as MiniLM's. A step's time is
from the end of one to the end of the next; what a stage does once is apart from that, above all bringing all rows up to
date at its end. Memory is the largest PSS of both processes together, both arms in it; small tables against themselves
say what is theirs.

    python -m benchmarks.tables [--rounds 3]
    python -m benchmarks.tables --quick      tables of 200,000 users, one round; nothing is kept
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import islice
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
from rayrank.learning.inputs import Hooks, TrainData, TrainSpec
from rayrank.learning.spec import LearningSpec, RowsSpec
from rayrank.learning.train import train
from rayrank.models.build import build_ranker
from rayrank.models.ranker import Ranker
from rayrank.models.spec import Inputs, Sizes, TeacherSpec
from rayrank.on_ray.collectives import TorchCollectives
from rayrank.schema import CategoricalFeature
from rayrank.sources.build import build, run_here
from rayrank.sources.dataset import Dataset
from rayrank.sources.groups import LocalGroups, Shards
from rayrank.sources.spec import BuildSpec

NAME, VERSION = "tables", 1
WORLD, STEPS, TURN, TEXT_WIDTH = 2, 48, 4, 384
LIMIT_S = 900.0
STAGES = ("rows", "sequences")
SPEC = LearningSpec(epochs=1, rows=RowsSpec(epochs=1, steps=1))
TABLE = Table(
    title="Steps with large id tables",
    command="python -m benchmarks.tables",
    note=(
        f"Two ranks over gloo, a thread each; micro-batches of {SPEC.batch_events} events, rows stage "
        f"{SPEC.rows.batch} rows a step. Users and items of each step are drawn uniformly over the tables. Each line "
        "and 6,000 / 4,000 were trained in turn, a few steps each: milliseconds of a step and the ratio of both, "
        "medians; seconds of such a run; largest PSS of both ranks together, both arms in it. Load: average over the "
        "last minute."
    ),
    labels=("users / items", "stage"),
    columns=("ms per step", "ms with small tables", "ratio", "run s", "both ranks MB", "load"),
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
FULL = (Arm(5_000_000, 300_000), Arm(5_000_000, 300_000, user_table=False), SMALL)
QUICK = (Arm(200_000, 60_000),)


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


class Turns:
    """Two threads in turn, each for some steps; notes how long the steps took, but for the first of each turn."""

    def __init__(self) -> None:
        self._condition, self._turn, self._left = threading.Condition(), 0, {0, 1}
        self.seconds: list[dict[str, list[float]]] = [{}, {}]
        self._last: list[tuple[str, float] | None] = [None, None]
        self._steps = [0, 0]

    def wait(self, who: int) -> None:
        """Until it is the turn of ``who``."""
        with self._condition:
            if not self._condition.wait_for(lambda: self._turn == who, LIMIT_S):
                raise TimeoutError("the other arm has not ended its turn")

    def step(self, who: int, stage: str) -> None:
        """``who`` has ended a step of a stage."""
        now, last = time.perf_counter(), self._last[who]
        if last is not None and last[0] == stage:
            self.seconds[who].setdefault(stage, []).append(now - last[1])
        self._last[who] = stage, now
        self._steps[who] += 1
        if self._steps[who] % TURN == 0:
            self._pass_on(who)
            self.wait(who)
            self._last[who] = None

    def leave(self, who: int) -> None:
        """``who`` needs no more turns."""
        self._left.discard(who)
        self._pass_on(who)

    def _pass_on(self, who: int) -> None:
        with self._condition:
            self._turn = 1 - who if 1 - who in self._left else who
            self._condition.notify_all()


def work(rank: int, arm: Arm, folder: Path, path: str) -> None:
    """One rank of one run; prints the seconds of each arm's steps by stage, and of all."""
    torch.set_num_threads(1)
    wait = timedelta(seconds=LIMIT_S)
    store = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD, timeout=wait)
    dataset, began, turns = Dataset.open(path), time.perf_counter(), Turns()
    pair = [prepared(one, dataset, rank) for one in (SMALL, arm)]

    def trained(who: int) -> None:
        turns.wait(who)
        model, data = pair[who]
        hooks = Hooks(on_used=lambda used: turns.step(who, used.stage))
        try:
            train(model, data, TrainSpec(SPEC), hooks, TorchCollectives(LIMIT_S, LIMIT_S))
        except BaseException:
            os._exit(1)  # the other arm waits
        turns.leave(who)

    threads = [threading.Thread(target=trained, args=(who,)) for who in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"steps": turns.seconds, "seconds": time.perf_counter() - began}), flush=True)


def prepared(arm: Arm, dataset: Dataset, rank: int) -> tuple[Ranker, TrainData]:
    """A fresh model and what it is trained on."""
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
    feed = Feed(LocalGroups(Shards(dataset.path)), SPEC, (rank, WORLD), cache_mb=1024)

    def steps(epoch: int, start: int) -> Iterator[list[SequenceBatch]]:
        return redrawn(islice(feed.steps(epoch, start), STEPS - start), arm)

    return model, TrainData(catalogue_of(dataset, arm.items), steps, STEPS)


def _categorical(feature: object) -> bool:
    return isinstance(feature, CategoricalFeature)


@dataclass(frozen=True)
class Run:
    """What a run of an arm beside small tables took."""

    small: dict[str, float]  # stage -> median seconds of a step
    steps: dict[str, float]
    seconds: float
    peak_mb: float

    def ratio(self, stage: str) -> float:
        """A step's time, to that with small tables."""
        return self.steps[stage] / self.small[stage]


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
        lines = (Path(folder) / "out").read_text(encoding="utf-8").splitlines()
        told = json.loads(next(line for line in reversed(lines) if line.startswith("{")))  # gloo may print below it
    small, steps = ({stage: median(found[stage][TURN:]) for stage in STAGES} for found in told["steps"])
    return Run(small, steps, told["seconds"], peak)


def watched(ranks: Sequence[subprocess.Popen[bytes]]) -> float:
    """Wait for all; the largest memory that they had together, MB."""
    peak, until = 0.0, time.monotonic() + LIMIT_S
    while any(process.poll() is None for process in ranks):
        peak = max(peak, sum(pss_mb(process.pid) for process in ranks))
        if time.monotonic() > until:
            raise TimeoutError(f"two ranks took more than {LIMIT_S:g} s")
        time.sleep(0.5)
    return peak


def ratio_of(runs: Sequence[Run], stage: str) -> float:
    """Median over the rounds."""
    return median(one.ratio(stage) for one in runs)


def rows_of(found: Mapping[Arm, Sequence[Run]]) -> list[Row]:
    """Rows of the results table."""
    return [
        Row(
            key=results.key_of(NAME, VERSION, vars(arm), stage), table=NAME, arm=(arm.name, stage),
            values={
                "ms per step": 1000 * median(one.steps[stage] for one in runs),
                "ms with small tables": 1000 * median(one.small[stage] for one in runs),
                "ratio": ratio_of(runs, stage), "run s": median(one.seconds for one in runs),
                "both ranks MB": median(one.peak_mb for one in runs), "load": os.getloadavg()[0],
            },
            **results.stamp(),
        )
        for arm, runs in found.items()
        for stage in STAGES
    ]  # fmt: skip


def claims_of(found: Mapping[Arm, Sequence[Run]]) -> dict[str, Any]:
    """The worse stage's ratio of the first arm; all ratios and the memory beside it."""
    by_stage = {arm.name: {s: round(ratio_of(runs, s), 3) for s in STAGES} for arm, runs in found.items()}
    memory = {arm.name: round(median(one.peak_mb for one in runs)) for arm, runs in found.items()}
    worst = max(next(iter(by_stage.values())).values())
    return {"step_time_large_tables": worst, "by_stage": by_stage, "memory_mb": memory}


def main() -> None:
    """Measure, keep the rows, print the claims."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller tables, one round; nothing is kept")
    parser.add_argument("--rounds", type=int, default=3)
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
