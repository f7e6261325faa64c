"""A bundle beside the smaller one made from it: how far scores move on the same targets, and both speeds.

Both are measured in turn on one thread, by processor time: what else the machine does counts as little as possible.
Knows bundles and datasets; judges nothing and writes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from rayrank.bundle import Bundle
from rayrank.compression.by_request import judged_model
from rayrank.compression.gate import logloss_ratio, ndcg_drop, score_difference
from rayrank.compression.texts import Texts
from rayrank.learning.predict import Protocol, Wanted, predict
from rayrank.learning.texts import encoder_of
from rayrank.memory import releasing
from rayrank.metrics.agreement import kendall_tau
from rayrank.metrics.scores import Scores
from rayrank.metrics.summary import evaluate_scores
from rayrank.pipeline.comparison import Part
from rayrank.pipeline.cost import one_thread, request_contexts, weights_mb
from rayrank.ranking.context import ColdItems
from rayrank.ranking.scorer import Scorer
from rayrank.schema import PARTS
from rayrank.sources.collate import collate
from rayrank.sources.dataset import Dataset

_WARM_UP = 2
_TEXTS, _ROUNDS = 32, 12


@dataclass(frozen=True)
class SideBySide:
    """What was found; ``metrics`` are the smaller bundle's own, '<protocol>/<task>/<metric>'."""

    differences: dict[str, float]
    speeds: dict[str, tuple[float, float]]  # what -> (original, smaller)
    metrics: dict[str, float]


def side_by_side(
    bundles: tuple[Bundle, Bundle],
    dataset: Dataset,
    part: Part,
    asked: tuple[int, int],
    progress: Callable[[str], None],
) -> SideBySide:
    """Measure (original, smaller); ``asked`` is (requests, candidates of each)."""
    with one_thread():
        progress(f"scoring {part} with both")
        judged = {p: _scores(bundles, dataset, part, p) for p in ("snapshot", "streaming")}
        progress("timing requests of both")
        tau, candidates_per_s = _requests(bundles, dataset, asked)
        progress("timing texts of both")
        texts_per_s, cosine = _texts(bundles)
    schema = dataset.schema
    metrics = {p: (evaluate_scores(a, schema), evaluate_scores(b, schema)) for p, (a, b) in judged.items()}
    differences = {
        "score_difference": max(score_difference(*scores, schema) for scores in judged.values()),
        "kendall_tau": tau,
        "ndcg_drop": ndcg_drop(*metrics["snapshot"], schema),
        "logloss_ratio": logloss_ratio(*metrics["streaming"], schema),
        **cosine,
    }
    sizes = (weights_mb(bundles[0]), weights_mb(bundles[1]))
    speeds = {**texts_per_s, "candidates per second": candidates_per_s, "megabytes of weights": sizes}
    own = {f"{p}/{name}": value for p, (_, after) in metrics.items() for name, value in after.items()}
    return SideBySide(differences, speeds, own)


def _scores(bundles: tuple[Bundle, Bundle], dataset: Dataset, part: Part, protocol: Protocol) -> tuple[Scores, Scores]:
    wanted = Wanted(protocol, (PARTS[part],), rank_items=False, profiles=False, window=bundles[0].info.window)
    groups = [
        (shard, group)
        for shard, group in dataset.groups()
        if getattr(dataset.manifest.shards[shard].row_groups[group], part)
    ]

    def of(bundle: Bundle) -> Scores:
        batches = (collate(dataset.read_group(*place), dataset.schema) for place in releasing(groups))
        return predict(judged_model(bundle), bundle.catalogue(), batches, wanted)

    return of(bundles[0]), of(bundles[1])


def _requests(
    bundles: tuple[Bundle, Bundle], dataset: Dataset, asked: tuple[int, int]
) -> tuple[float, tuple[float, float]]:
    """(mean Kendall tau of the task where it is least, candidates per second of both at the median request)."""
    requests, candidates = asked
    contexts = request_contexts(dataset, bundles[0].info.window, requests)
    scorers, generator = [Scorer(bundle) for bundle in bundles], np.random.default_rng(0)
    seconds: list[list[float]] = [[], []]
    taus: dict[str, list[float]] = {task.name: [] for task in dataset.schema.event_tasks}
    for number in range(requests + _WARM_UP):
        context = contexts[number % len(contexts)]
        rows = generator.integers(1, max(len(bundles[0].items_NW), 2), candidates)
        found: dict[int, Mapping[str, np.ndarray]] = {}
        for which in _turn(number):
            began = time.thread_time()
            found[which] = scorers[which].score(context, rows, ColdItems()).scores
            seconds[which].append(time.thread_time() - began)
        for task, kept_taus in taus.items():
            kept_taus.append(kendall_tau(found[0][task], found[1][task]))
    tau = float(np.min([np.mean(values) for values in taus.values()]))
    before, after = (candidates / float(np.median(kept[_WARM_UP:])) for kept in seconds)
    return tau, (before, after)


def _turn(number: int) -> tuple[int, int]:
    """Who goes first: what the second finds warm, the first did not."""
    return (0, 1) if number % 2 else (1, 0)


def _texts(bundles: tuple[Bundle, Bundle]) -> tuple[dict[str, tuple[float, float]], dict[str, float]]:
    """(texts per second of both, in batches and alone; cosines of held-out texts); empty without encoders."""
    texts = Texts.of(bundles[0])
    encoders = [encoder for bundle in bundles if (encoder := encoder_of(bundle.model)) is not None]
    if texts is None or len(encoders) < len(bundles):
        return {}, {}
    speeds = {}
    for name, size in (("texts per second", _TEXTS), ("texts per second, one at a time", 1)):
        seconds: list[list[float]] = [[], []]
        for number in range(_ROUNDS + _WARM_UP):
            rows = texts.learnt[torch.arange(number * size, (number + 1) * size) % len(texts.learnt)]
            for which in _turn(number):
                began = time.thread_time()
                with torch.inference_mode():
                    texts.encode(encoders[which], rows)
                seconds[which].append(time.thread_time() - began)
        before, after = (size / float(np.median(kept[_WARM_UP:])) for kept in seconds)
        speeds[name] = (before, after)
    cosine = texts.cosine(encoders[1], texts.held_out)
    return speeds, {"mean_text_cosine": float(cosine.mean()), "least_text_cosine": float(cosine.min())}
