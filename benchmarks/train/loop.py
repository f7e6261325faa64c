"""The training loop: one pass over a sequence against a pass per row, and against the naive loop over rows."""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median

import numpy as np
import torch
from torch import Tensor

from benchmarks.train.data import Prepared
from benchmarks.train.naive import Events, NaiveLoop
from benchmarks.train.timing import ratio, seconds
from rayrank.batch import FAR, Catalogue, SequenceBatch
from rayrank.learning.forward import StepNoise, forward
from rayrank.learning.inputs import Hooks, TrainSpec
from rayrank.learning.plan import take, trim
from rayrank.learning.predict import Wanted, predict
from rayrank.learning.spec import LearningSpec
from rayrank.learning.train import train
from rayrank.metrics.order import auc
from rayrank.models.encoder import TextEncoder
from rayrank.models.linear import multiplies_bf16
from rayrank.models.ranker import Ranker
from rayrank.models.tuning import Frozen, TuneSpec
from rayrank.objectives.losses import compute
from rayrank.objectives.spec import ObjectiveSpec
from rayrank.objectives.targets import training_targets
from rayrank.schema import PARTS, TRAIN, VALID, BinaryTask, RegressionTask
from rayrank.sources.encoders import PackageEncoder, resolve_encoder

ROWS_AT_ONCE = 64
VALID_EVENTS = 10_000
LABELS: tuple[type[BinaryTask | RegressionTask], ...] = (BinaryTask, RegressionTask)
"""The naive loop learns the first task of each."""


def causal_vs_rows(prepared: Prepared, rounds: int, sequences: int = 4) -> float:
    """Times faster: all targets of some sequences in one pass, against every target with its own history."""
    spec, catalogue = LearningSpec(), prepared.catalogue()
    model = prepared.teacher(fresh_encoder(prepared), Frozen())
    steps = prepared.feed(spec).steps(0)
    batch = next(b for step in steps for b in step if b.part_BT.shape[1] >= 128)
    batch = trim(take(batch, torch.arange(min(sequences, len(batch.part_BT)))))
    rows = _by_row(batch)

    def causal() -> Tensor:
        return _learned(model, batch, catalogue)

    def by_row() -> Tensor:
        return torch.cat([_learned(model, part, catalogue) for part in rows])

    first, second = causal(), by_row()
    order = torch.cat([part.row_BT[part.part_BT == TRAIN] for part in rows]).argsort()
    mine = batch.row_BT[batch.part_BT == TRAIN].argsort()
    torch.testing.assert_close(first[mine], second[order], rtol=1e-3, atol=1e-4)
    return ratio(seconds({"rows": by_row, "causal": causal}, rounds), "rows", "causal")


def vs_naive_loop(prepared: Prepared, how: TuneSpec, naive_steps: int, epochs: int) -> dict[str, float]:
    """Training events a second of both loops, the encoder trained in both, and AUC on the same valid events.

    Ours with products in bfloat16 where the machine multiplies it, two seeds, and one in float32 beside them.
    """
    events, valid = logged(prepared, TRAIN), logged(prepared, VALID)
    texts = ["", *prepared.dataset.catalogue_table()["text"].to_pylist()]
    naive = NaiveLoop(events, texts, prepared.dataset.manifest.counts.users + 1)
    chosen = np.random.default_rng(0).permutation(len(valid.user))[:VALID_EVENTS]
    fast = "bf16" if multiplies_bf16(torch.device("cpu")) else "fp32"
    arms = ((fast, 0), *([("fp32", 0)] if fast == "bf16" else []), (fast, 1))
    found: dict[str, list[tuple[float, float, float]]] = {"bf16": [], "fp32": []}
    for precision, seed in arms:
        naive.run(naive_steps // (len(arms) + 1))
        spec = LearningSpec(seed=seed, epochs=epochs, precision=precision)  # type: ignore[arg-type]
        model = prepared.teacher(fresh_encoder(prepared), how, seed)
        data = prepared.data(spec, prepared.catalogue(), validated=True)
        began = time.perf_counter()
        result = train(model, data, TrainSpec(spec), Hooks())
        whole = epochs * len(events.user) / (time.perf_counter() - began)
        said = predict(model, result.catalogue, prepared.feed(spec).evaluated("valid"), Wanted("streaming", (VALID,)))
        place = np.searchsorted(said.row, valid.row[chosen])
        reached = auc(said.labels["like"][place], said.predictions["like"][place])
        found[precision].append((median(epoch["events_per_s"] for epoch in result.history), whole, reached))
    naive.run(naive_steps - len(arms) * (naive_steps // (len(arms) + 1)))
    theirs = auc(valid.like[chosen], naive.score(valid.user[chosen], valid.item[chosen]))
    rate = naive.done / naive.seconds
    rates, wholes, aucs = (median(values) for values in zip(*found[fast], strict=True))
    beside = {"vs_naive_loop, fp32": found["fp32"][0][0] / rate, "AUC, fp32": found["fp32"][0][2]}
    return {
        "vs_naive_loop": rates / rate, "events/s": rates, "events/s, whole run": wholes,
        "naive events/s": rate, "AUC": aucs, "naive AUC": theirs, **beside,
    }  # fmt: skip


def fresh_encoder(prepared: Prepared) -> TextEncoder:
    """The packaged encoder with its pretrained weights."""
    loaded = resolve_encoder(PackageEncoder(max_tokens=prepared.texts.loaded.max_tokens))
    assert loaded is not None
    return loaded.network


def _by_row(batch: SequenceBatch) -> list[SequenceBatch]:
    """Every train target as a sequence of its own that ends with it; those of about equal length together."""
    sequence, place = (batch.part_BT == TRAIN).nonzero(as_tuple=True)
    order = torch.argsort(place)
    found = []
    for start in range(0, len(order), ROWS_AT_ONCE):
        few = order[start : start + ROWS_AT_ONCE]
        alone = take(batch, sequence[few])
        only = torch.zeros_like(alone.part_BT)
        only[torch.arange(len(few)), place[few]] = TRAIN
        found.append(trim(replace(alone, part_BT=only)))
    return found


def _learned(model: Ranker, batch: SequenceBatch, catalogue: Catalogue) -> Tensor:
    """Logits of the first event task at the train targets, after a backward pass of all losses of events."""
    targets = training_targets(batch, torch.full_like(batch.valid_from_B, FAR), None)
    targets = replace(targets, profile_B={name: torch.full_like(v, -1) for name, v in targets.profile_B.items()})
    model.zero_grad(set_to_none=True)
    said = forward(model, batch, targets, catalogue, None, StepNoise(None))
    terms = compute(said, targets, model.schema, ObjectiveSpec())
    torch.stack([value for (task, _), value in terms.sums.items() if task in model.event_tasks]).sum().backward()
    return said.logits_BQ[model.schema.event_tasks[0].name][targets.asked_BQ].detach()


def logged(prepared: Prepared, part: int) -> Events:
    """The targets of a part that have both labels."""
    columns: dict[str, list[np.ndarray]] = {"user": [], "item": [], "like": [], "rating": [], "row": []}
    feed = prepared.feed(LearningSpec())
    for batch in feed.evaluated(next(name for name, number in PARTS.items() if number == part)):
        mine = batch.part_BT == part
        user_BT = batch.events.user_B.unsqueeze(1).expand_as(mine)
        labels = [batch.events.labels_BT[prepared.dataset.schema.of_kind(kind)[0].name] for kind in LABELS]
        for name, values in zip(columns, (user_BT, batch.events.item_BT, *labels, batch.row_BT), strict=True):
            columns[name].append(values[mine].numpy())
    found = {name: np.concatenate(values) for name, values in columns.items()}
    keep = ~np.isnan(found["like"]) & ~np.isnan(found["rating"])
    return Events(**{name: values[keep] for name, values in found.items()})
