"""Seconds to the same AUC on items that training never saw, where only their texts tell what they are.

The honest form of a speed of training: a loop that does many events a second and learns little from each would lose
here. The naive loop is given as long as it needs, up to a limit; past that the ratio is a lower bound.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from benchmarks.train.data import Prepared
from benchmarks.train.loop import fresh_encoder, logged
from benchmarks.train.naive import NaiveLoop
from rayrank.batch import Catalogue
from rayrank.learning.inputs import Hooks, TrainSpec
from rayrank.learning.predict import Wanted, predict
from rayrank.learning.spec import LearningSpec, RefreshSpec
from rayrank.learning.texts import encode_catalogue
from rayrank.learning.train import train
from rayrank.metrics.order import auc
from rayrank.models.ranker import Ranker
from rayrank.models.tuning import Full
from rayrank.schema import TEST, TRAIN

CHUNK = 25
"""Steps of the naive loop between two looks at its AUC; the looks are not counted."""
RATE = 2e-4
"""Learning rate of both encoders."""
SLACK = 0.002
"""AUC that the naive loop may lack: 0.2 points."""


@dataclass(frozen=True)
class Cold:
    """Test events of items without training events."""

    row: np.ndarray
    user: np.ndarray
    item: np.ndarray
    like: np.ndarray

    @staticmethod
    def of(prepared: Prepared) -> Cold:
        """From the log."""
        events = logged(prepared, TEST)
        unseen_N = prepared.dataset.catalogue().count_N.numpy() == 0
        mine = unseen_N[events.item]
        return Cold(*(getattr(events, name)[mine] for name in ("row", "user", "item", "like")))


def seconds_to_cold_auc(prepared: Prepared, limit_s: float) -> dict[str, float]:
    """Both loops with all layers of the encoder trained, and ours again with the pretrained weights put back."""
    cold, spec = Cold.of(prepared), LearningSpec(epochs=4, refresh=RefreshSpec(share=0.1), encoder_learning_rate=RATE)
    model = prepared.teacher(fresh_encoder(prepared), Full())
    data = prepared.data(spec, prepared.catalogue(), validated=True)
    before = _auc(prepared, model, data.catalogue, cold)
    began = time.perf_counter()
    result = train(model, data, TrainSpec(spec), Hooks())
    ours = time.perf_counter() - began
    reached = _auc(prepared, model, result.catalogue, cold)
    model.encoder.load_state_dict(fresh_encoder(prepared).state_dict())  # type: ignore[union-attr, operator]
    restored = _auc(prepared, model, encode_catalogue(model, result.catalogue), cold)
    theirs, found = _until(prepared, cold, reached - SLACK, limit_s)
    return {
        "seconds to cold AUC: naive ÷ ours": theirs / ours, "cold AUC": reached, "cold AUC, naive": found,
        "cold AUC, pretrained weights put back": restored, "cold AUC, untrained": before,
        "seconds": ours, "seconds, naive": theirs,
    }  # fmt: skip


def _until(prepared: Prepared, cold: Cold, wanted: float, limit_s: float) -> tuple[float, float]:
    """Seconds of training and AUC of the naive loop when it has reached ``wanted``, or its time is up."""
    texts = ["", *prepared.dataset.catalogue_table()["text"].to_pylist()]
    loop = NaiveLoop(logged(prepared, TRAIN), texts, prepared.dataset.manifest.counts.users + 1, RATE)
    found = 0.0
    while found < wanted and loop.seconds < limit_s:
        loop.run(CHUNK)
        found = auc(cold.like, loop.score(cold.user, cold.item))
    return loop.seconds, found


def _auc(prepared: Prepared, model: Ranker, catalogue: Catalogue, cold: Cold) -> float:
    window = prepared.dataset.manifest.window
    batches = prepared.feed(LearningSpec()).evaluated("test")
    said = predict(model, catalogue, batches, Wanted("snapshot", (TEST,), window=window))
    place = np.searchsorted(said.row, cold.row)
    return auc(cold.like, said.predictions["like"][place])
