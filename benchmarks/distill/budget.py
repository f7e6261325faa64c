"""NDCG@10 under equal latency budgets: the student alone, and the teacher on what it can read in time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from statistics import median

import numpy as np

from benchmarks.distill.clock import PROCESSOR, timed
from benchmarks.distill.figures import in_time, under_budget
from benchmarks.distill.requests import Asking, askings, described
from benchmarks.distill.speed import CANDIDATES
from rayrank.bundle import Bundle
from rayrank.metrics.order import ndcg
from rayrank.pipeline.cost import one_thread
from rayrank.ranking.context import ColdItems
from rayrank.ranking.scorer import Scorer
from rayrank.sources.dataset import Dataset

BUDGETS_MS = (10, 25, 50)
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Numbers of candidates that the teacher is timed on; none of these budgets buys more texts."""
_WARM_SIZES = (8, 32, 125, 250, 500)
"""Where items have no texts, and so are never cold."""
Said = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Labels (Q,), the student's scores, the teacher's."""


def ndcg_at_budget(
    student: Bundle, teacher: Bundle, dataset: Dataset, task: str, users: int, rounds: int
) -> dict[str, float]:
    """Student ÷ teacher at every budget, and what the quotient is made of.

    The teacher's arm begins with the student's order, whose time counts, and re-scores the student's best as far as
    the time goes; they come first in its order, the others keep the student's. ``as they come``: it re-scores
    candidates in the order of the request instead. Its scores are those with known ids, the time is that of texts
    which nobody has read before.
    """
    asked = list(islice(askings(dataset, task, student.info.window), users))
    fast, slow = Scorer(student), Scorer(teacher)
    with one_thread():
        by_clock = _latencies(fast, slow, dataset, asked, rounds)
        scored = [_scores(fast, slow, one, len(student.items_NW), task) for one in asked]
    alone = _ndcg(scored, lambda said, _: said)
    found = {
        "ndcg_at_budget, NDCG@10 of the student": alone,
        "ndcg_at_budget, NDCG@10 of the teacher without a budget": _ndcg(scored, lambda _, taught: taught),
        "ndcg_at_budget, users": float(len(asked)),
    }
    for end, (student_s, teacher_s) in by_clock.items():
        found[f"ndcg_at_budget, milliseconds of the student{end}"] = 1000 * student_s
        found[f"ndcg_at_budget, milliseconds of the teacher for {min(teacher_s)}{end}"] = (
            1000 * teacher_s[min(teacher_s)]
        )
        for budget in BUDGETS_MS:
            size = in_time(teacher_s, budget / 1000 - student_s)
            found[f"ndcg_at_budget {budget}, candidates read{end}"] = float(size)
            for name, ndcg_teacher in _within(scored, size).items():
                found[f"ndcg_at_budget {budget}{name}{end}"] = alone / ndcg_teacher
    return found


def _within(scored: Sequence[Said], size: int) -> dict[str, float]:
    """NDCG@10 of the teacher's arm that re-scores ``size`` candidates: the student's best, or as they come."""

    def best(said: np.ndarray, taught: np.ndarray) -> np.ndarray:
        return under_budget(said, taught, np.argsort(-said, kind="stable")[:size])

    def come(said: np.ndarray, taught: np.ndarray) -> np.ndarray:
        return under_budget(said, taught, np.arange(min(size, len(said))))

    return {"": _ndcg(scored, best), ", as they come": _ndcg(scored, come)}


def _latencies(
    fast: Scorer, slow: Scorer, dataset: Dataset, asked: Sequence[Asking], rounds: int
) -> dict[str, tuple[float, dict[int, float]]]:
    """Clock -> median seconds of a student's request of 500, and of a teacher's by the number of texts it reads."""
    generator, items = np.random.default_rng(0), len(dataset.catalogue())
    size = min(CANDIDATES, items - 1)
    turns = {"student": iter(range(10**9))}
    texts = bool(slow.model.spec.inputs.text)
    sizes = [n for n in (SIZES if texts else _WARM_SIZES) if n <= size]

    def request(name: str) -> Asking:
        return asked[next(turns[name]) % len(asked)]

    def student() -> None:
        rows = 1 + generator.permutation(items - 1)[:size].astype(np.int64)
        fast.score(request("student").context, rows, ColdItems())

    def teacher(count: int) -> Callable[[], None]:
        name = f"teacher {count}"
        turns[name] = iter(range(10**9))
        drawn = [1 + generator.permutation(items - 1)[:count].astype(np.int64) for _ in range(rounds + 1)]
        ready = iter([described(dataset, rows) if texts else (ColdItems(), rows) for rows in drawn])

        def work() -> None:
            cold, candidates = next(ready)
            slow.score(request(name).context, candidates, cold)

        return work

    arms: dict[str, Callable[[], object]] = {"student": student, **{f"teacher {n}": teacher(n) for n in sizes}}
    times = timed(arms, rounds)
    clocks = {"": times.wall, PROCESSOR: times.processor}
    return {
        end: (median(found["student"]), {n: median(found[f"teacher {n}"]) for n in sizes})
        for end, found in clocks.items()
    }


def _scores(fast: Scorer, slow: Scorer, asking: Asking, items: int, task: str) -> Said:
    """A user's positives among items that the user never met, and what both models say."""
    generator = np.random.default_rng(asking.context.user)
    unseen = np.setdiff1d(np.arange(1, items), asking.met)
    positives = generator.permutation(asking.positives)[:CANDIDATES]
    sampled = generator.permutation(unseen)[: CANDIDATES - len(positives)]
    rows = generator.permutation(np.concatenate([positives, sampled])).astype(np.int64)
    said, taught = (scorer.score(asking.context, rows, ColdItems()).scores[task] for scorer in (fast, slow))
    return np.isin(rows, positives).astype(np.float64), said, taught


def _ndcg(scored: Sequence[Said], order: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> float:
    user = np.concatenate([np.full(len(label), number) for number, (label, _, _) in enumerate(scored)])
    label = np.concatenate([label for label, _, _ in scored])
    return ndcg(user, label, np.concatenate([order(said, taught) for _, said, taught in scored])).mean
