"""What each input of the teacher is worth, where fine-tuning its encoder pays, and what is left with little data.

On MovieLens-1M (users 1–2999), split ``ml1m-user``, in this process, without Ray. Little data: a share of the training
events, drawn by row number, is kept; the others are neither targets nor history. Cold items: a tenth of the items,
drawn by number, is left out of training and of histories altogether, and tested on its own. Models are chosen on valid.
Resumable: a row that is in docs/results.json is not computed again.

    python -m benchmarks.ablations [--groups inputs,tuning,little,cold] [--seeds 0,1,2]
    python -m benchmarks.ablations --quick      one arm a group on generated data; nothing is kept
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import results
from benchmarks.results import ROOT, Row, Table
from benchmarks.train.data import Prepared
from rayrank.batch import Catalogue, SequenceBatch
from rayrank.learning.feed import Feed
from rayrank.learning.inputs import Hooks, TrainData, TrainSpec
from rayrank.learning.predict import Protocol, Wanted, predict
from rayrank.learning.spec import LearningSpec, RowsSpec
from rayrank.learning.train import train
from rayrank.metrics.order import auc, gauc
from rayrank.metrics.scores import Scores
from rayrank.metrics.summary import evaluate_scores
from rayrank.models.noise import Noise
from rayrank.models.ranker import Ranker
from rayrank.models.spec import Inputs, TeacherSpec
from rayrank.models.tuning import Frozen, Full, Lora, Top, TuneSpec
from rayrank.schema import TEST, TRAIN, VALID
from rayrank.sources.encoders import PackageEncoder, resolve_encoder

NAME, VERSION = "ablations", 1
COLD = 0.1
"""Share of the items that is left out where cold items are tested."""
MAX_TOKENS = 48
"""Title, genres, director, actors and the beginning of the plot: full texts cost minutes a run when they are tuned."""
TABLE = Table(
    title="What the teacher's inputs and its tuning are worth",
    command="python -m benchmarks.ablations",
    note=(
        "Split ml1m-user, test; item texts cut after 48 tokens. AUC, GAUC and NDCG@10 of like, RMSE of rating. Cold: "
        "test targets of items that training never saw (a tenth of the items, then left out of every history too). "
        "Seconds: training in one process of one thread."
    ),
    labels=("group", "arm", "protocol"),
    columns=("AUC", "GAUC", "NDCG@10", "LogLoss", "RMSE", "cold AUC", "cold GAUC", "seconds"),
)


@dataclass(frozen=True)
class Arm:
    """A teacher and what it may see."""

    inputs: Mapping[str, bool] = field(default_factory=dict)
    tuned: TuneSpec = field(default_factory=Frozen)
    share: float = 1.0  # of the training events
    cold: bool = False  # whether a tenth of the items is left out


OFF = {"text": False}
IDS = {"text": False, "item_attributes": False, "user_attributes": False}
GROUPS: Mapping[str, Mapping[str, Arm]] = {
    "inputs": {
        "everything": Arm(),
        **{
            f"without {name.replace('_', ' ')}": Arm({name: False})
            for name in ("text", "history", "history_labels", "time", "user_attributes", "item_attributes")
        },
        "without ids": Arm({"item_id": False, "user_id": False}),
        "ids alone": Arm(IDS),
    },
    "tuning": {"frozen": Arm(), "top layer": Arm(tuned=Top()), "lora": Arm(tuned=Lora()), "full": Arm(tuned=Full())},
    "little": {
        f"{share:.0%}, {name}": replace(arm, share=share)
        for share in (0.1, 0.01)
        for name, arm in {
            "frozen": Arm(), "top layer": Arm(tuned=Top()), "lora": Arm(tuned=Lora()), "full": Arm(tuned=Full()),
            "without text": Arm(OFF), "ids alone": Arm(IDS),
        }.items()
    },
    "cold": {
        "frozen": Arm(cold=True), "top layer": Arm(tuned=Top(), cold=True), "lora": Arm(tuned=Lora(), cold=True),
        "full": Arm(tuned=Full(), cold=True), "without text": Arm(OFF, cold=True), "ids alone": Arm(IDS, cold=True),
    },
}  # fmt: skip


def spec_of(seed: int) -> LearningSpec:
    """As in jobs/configs/movielens."""
    return LearningSpec(seed=seed, epochs=3, rows=RowsSpec(epochs=5))


@dataclass(frozen=True)
class Seen:
    """What of the log a model may see, by row and item number: the same for every seed."""

    share: float
    cold: bool

    def batch(self, batch: SequenceBatch) -> SequenceBatch:
        """The batch without training events that are left out, and without events of cold items in histories."""
        noise, part_BT = Noise(0, 0), batch.part_BT
        gone_BT = (part_BT == TRAIN) & (noise.uniform("share", batch.row_BT) >= self.share)
        if self.cold:
            gone_BT |= self.is_cold(batch.events.item_BT) & (part_BT != VALID) & (part_BT != TEST)
        shown_BT = batch.events.history_BT if batch.events.history_BT is not None else torch.ones_like(gone_BT)
        hidden_BT = gone_BT | (self.is_cold(batch.events.item_BT) if self.cold else torch.zeros_like(gone_BT))
        events = replace(batch.events, history_BT=shown_BT & ~hidden_BT)
        return replace(batch, events=events, part_BT=torch.where(gone_BT, 0, part_BT).to(part_BT.dtype))

    @staticmethod
    def is_cold(item: Tensor) -> Tensor:
        """bool, which items are left out."""
        return (Noise(0, 1).uniform("cold", item) < COLD) & (item > 0)

    def steps(self, steps: Iterable[Sequence[SequenceBatch]]) -> Iterator[list[SequenceBatch]]:
        """Of an epoch."""
        for step in steps:
            yield [self.batch(batch) for batch in step]


def fitted(prepared: Prepared, arm: Arm, seed: int) -> tuple[Ranker, Catalogue, Feed, float]:
    """A trained teacher, its catalogue, a feed of the same data, and the seconds of training."""
    loaded = resolve_encoder(PackageEncoder(max_tokens=MAX_TOKENS))
    assert loaded is not None
    spec, seen = spec_of(seed), Seen(arm.share, arm.cold)
    model = prepared.teacher(loaded.network, arm.tuned, seed, TeacherSpec(inputs=Inputs(**arm.inputs)))
    feed, whole = prepared.feed(spec), prepared.data(spec, prepared.catalogue())
    data = TrainData(
        whole.catalogue,
        lambda epoch, start: seen.steps(feed.steps(epoch, start)),
        max(1, whole.steps_per_epoch),
        lambda: map(seen.batch, feed.evaluated("valid")),
    )
    began = time.perf_counter()
    result = train(model, data, TrainSpec(spec), Hooks())
    return model, result.catalogue, feed, time.perf_counter() - began


def row_values(scores: Scores, prepared: Prepared, cold: bool) -> dict[str, float | None]:
    """The table's columns."""
    found = evaluate_scores(scores, prepared.dataset.schema)
    values: dict[str, float | None] = {
        "AUC": found["like/auc"], "GAUC": found["like/gauc"], "NDCG@10": found["like/ndcg_10"],
        "LogLoss": found["like/log_loss"], "RMSE": found.get("rating/rmse"), "cold AUC": None, "cold GAUC": None,
    }  # fmt: skip
    if cold:
        mine = Seen.is_cold(torch.as_tensor(scores.item)).numpy() & ~np.isnan(scores.labels["like"])
        label, said, user = scores.labels["like"][mine], scores.predictions["like"][mine], scores.user[mine]
        values |= {"cold AUC": auc(label, said), "cold GAUC": gauc(user, label, said).mean}
    return values


def run(prepared: Prepared, group: str, name: str, seed: int, keep: bool) -> None:
    """One arm with one seed, unless its rows are there."""
    arm, data = GROUPS[group][name], prepared.dataset.manifest.data_fingerprint
    about = [VERSION, data, MAX_TOKENS, repr(arm), seed, spec_of(seed).model_dump(mode="json")]
    protocols: tuple[Protocol, ...] = ("snapshot", "streaming")
    keys = {protocol: results.key_of(NAME, *about, protocol) for protocol in protocols}
    if keep and all(results.load().find(key) for key in keys.values()):
        return
    model, catalogue, feed, seconds = fitted(prepared, arm, seed)
    seen, rows = Seen(arm.share, arm.cold), []
    for protocol in protocols:
        batches = map(seen.batch, feed.evaluated("test"))
        said = predict(model, catalogue, batches, Wanted(protocol, (TEST,), window=prepared.dataset.manifest.window))
        values = {**row_values(said, prepared, arm.cold), "seconds": seconds}
        rows.append(
            Row(key=keys[protocol], table=NAME, arm=(group, name, protocol), seed=seed, seconds=seconds, values=values,
                **results.stamp())
        )  # fmt: skip
        print(f"{group}, {name}, {protocol}, seed {seed}: {values}", file=sys.stderr, flush=True)
    if keep:
        results.record(NAME, TABLE, rows)
        results.MARKDOWN.write_text(results.render(results.load()), encoding="utf-8")


def main() -> None:
    """Run the arms that lack rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one arm a group on generated data; nothing is kept")
    parser.add_argument("--groups", default=",".join(GROUPS))
    parser.add_argument("--seeds", default="0,1,2")
    options = parser.parse_args()
    groups, seeds = options.groups.split(","), [int(seed) for seed in options.seeds.split(",")]
    if unknown := set(groups) - set(GROUPS):
        parser.error(f"--groups {','.join(sorted(unknown))}: groups are {', '.join(GROUPS)}")
    torch.set_num_threads(1)
    place = Path(os.environ.get("RAYRANK_DATA", ROOT.parent / "shared" / "data")) / "ml-1m"
    if not options.quick and not (place / "ratings.dat").is_file():
        parser.error(f"{place}: must hold MovieLens-1M; set RAYRANK_DATA to the folder above it")
    with tempfile.TemporaryDirectory(prefix="rayrank-ablations-") as folder:
        prepared = Prepared.of(Path(folder) / "dataset", None if options.quick else str(place), MAX_TOKENS)
        for seed in seeds[:1] if options.quick else seeds:
            for group in groups:
                for name in list(GROUPS[group])[: 1 if options.quick else None]:
                    run(prepared, group, name, seed, keep=not options.quick)
    results.last_line({"benchmark": NAME, "groups": groups, "seeds": seeds, "quick": options.quick})


if __name__ == "__main__":
    main()
