"""Candidates a second on one thread: the student beside its teachers and beside a naive forward pass of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from benchmarks.distill.clock import timed
from benchmarks.distill.requests import described
from rayrank.batch import Catalogue, Events, Queries
from rayrank.bundle import Bundle
from rayrank.models.build import build_ranker
from rayrank.models.ranker import Ranker, take_rows
from rayrank.models.spec import CrossSpec
from rayrank.pipeline.cost import one_thread, request_contexts
from rayrank.ranking.context import ColdItems, Scored, UserContext
from rayrank.ranking.fusion import task_scores
from rayrank.ranking.scorer import Scorer
from rayrank.sources.dataset import Dataset
from rayrank.sources.encoders import PackageEncoder, resolve_encoder, tokenise

CANDIDATES = 500
TOLERANCE = 1e-5
"""Largest difference of scores between two ways to compute them."""


@dataclass(frozen=True)
class Effort:
    """How thoroughly is timed."""

    rounds: int = 10  # of what takes milliseconds
    slow_rounds: int = 3  # of what takes seconds
    requests: int = 40  # of a fast arm in a round
    candidates: int = CANDIDATES


class Asked:
    """Requests of one dataset, asked in turn: a user's history and random items of the catalogue."""

    def __init__(self, dataset: Dataset, window: int, effort: Effort) -> None:
        self.dataset, self.effort = dataset, effort
        self.contexts = request_contexts(dataset, window, effort.requests)
        generator, items = np.random.default_rng(0), len(dataset.catalogue())
        count = min(effort.candidates, items - 1)
        self.rows = [1 + generator.permutation(items - 1)[:count].astype(np.int64) for _ in self.contexts]
        self.candidates = count

    def arm(self, scorer: Scorer, requests: int | None = None) -> Callable[[], None]:
        """Score that many requests (default: all), their items known."""

        def work() -> None:
            for context, rows in list(zip(self.contexts, self.rows, strict=True))[:requests]:
                scorer.score(context, rows, ColdItems())

        return work

    def cold(self, scorer: Scorer) -> Callable[[], None]:
        """Score one request whose candidates the teacher reads for the first time; another one each time."""
        made = [described(self.dataset, rows) for rows in self.rows]
        turn = iter(range(10**9))

        def work() -> None:
            number = next(turn) % len(made)
            cold, candidates = made[number]
            scorer.score(self.contexts[number], candidates, cold)

        return work


def speed_ratio(student: Bundle, teacher: Bundle, dataset: Dataset, effort: Effort) -> dict[str, float]:
    """Student ÷ teacher with warm item vectors, ÷ teacher with cold texts, ÷ cross teacher (the latter with text)."""
    asked = Asked(dataset, student.info.window, effort)
    fast, slow = Scorer(student), Scorer(teacher)
    size, count = asked.candidates, len(asked.contexts)
    with one_thread():
        warm = timed({"teacher": asked.arm(slow), "student": asked.arm(fast)}, effort.rounds)
        found = {
            **warm.ratios("speed_ratio warm", "teacher", "student"),
            **warm.rates("candidates/s, student", "student", size * count),
            **warm.rates("candidates/s, teacher warm", "teacher", size * count),
        }
        if not teacher.model.spec.inputs.text:
            return found
        cross = Scorer(cross_of(teacher, dataset))
        arms = {"student": asked.arm(fast), "cold": asked.cold(slow), "cross": asked.arm(cross, 1)}
        times = timed(arms, effort.slow_rounds)
    return {
        **found,
        **times.ratios("speed_ratio cold", "cold", "student", count),
        **times.ratios("speed_ratio cross", "cross", "student", count),
        **times.rates("candidates/s, teacher cold", "cold", size),
        **times.rates("candidates/s, cross", "cross", size),
    }


def cross_of(teacher: Bundle, dataset: Dataset) -> Bundle:
    """The cross-mode teacher of the same catalogue, untrained above its pretrained encoder: a clock cannot tell."""
    spec = CrossSpec()
    loaded = resolve_encoder(PackageEncoder(max_tokens=spec.item_tokens))
    assert loaded is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_ranker(spec, dataset.schema, dataset.sizes(loaded.network.width), loaded.network)
    texts = ["", *(text or "" for text in dataset.catalogue_table()["text"].to_pylist())]
    ids, offsets = tokenise(texts, loaded.tokenizer_json, spec.item_tokens)
    model.requires_grad_(False).eval()
    with torch.inference_mode():
        items_NW = model.item_vectors(replace(dataset.catalogue(), token_ids=ids, token_offsets=offsets))
    return replace(teacher, model=model, items_NW=items_NW, text_ND=None)


class NaiveScorer(Scorer):
    """The same model as its training forward pass would score: nothing is precomputed per item.

    ``rows``: every candidate is a row of a batch with the user's history beside it, as models of (user, item) rows
    are called; otherwise the history is read once for all candidates.
    """

    def __init__(self, bundle: Bundle, rows: bool) -> None:
        super().__init__(bundle)
        self.rows, self._catalogue = rows, bundle.catalogue()

    def score(self, context: UserContext, candidates: np.ndarray, _cold: ColdItems) -> Scored:
        """As :meth:`Scorer.score`, of catalogue items."""
        with torch.inference_mode():
            events, queries = self._events(context, None), self._queries(context, candidates, None)
            if self.rows:
                events, queries = _one_each(events, queries)
            logits = _forward(self.model, self._catalogue, events, queries)
            values = {task: v.flatten().float().numpy() for task, v in logits.items()}
        return Scored(task_scores(values, self.schema))


def student_vs_naive(student: Bundle, dataset: Dataset, effort: Effort) -> dict[str, float]:
    """Serving's scoring of the student against naive passes, after their scores were found equal."""
    asked = Asked(dataset, student.info.window, effort)
    served, once, rows = Scorer(student), NaiveScorer(student, rows=False), NaiveScorer(student, rows=True)
    few = min(4, len(asked.contexts))
    with one_thread():
        gap = max(_gap(served, naive, asked, few) for naive in (once, rows))
        if gap > TOLERANCE:
            raise AssertionError(f"scores of the naive forward differ by {gap:g}")
        arms = {"served": asked.arm(served), "once": asked.arm(once), "rows": asked.arm(rows, few)}
        times = timed(arms, effort.slow_rounds)
    return {
        **times.ratios("student_vs_naive_forward", "rows", "served", len(asked.contexts) / few),
        **times.ratios("student_vs_naive_forward, history read once", "once", "served"),
        "student_vs_naive_forward, largest difference": gap,
    }


def _gap(first: Scorer, second: Scorer, asked: Asked, requests: int) -> float:
    found = [0.0]
    for context, rows in list(zip(asked.contexts, asked.rows, strict=True))[:requests]:
        one, other = (scorer.score(context, rows, ColdItems()).scores for scorer in (first, second))
        found += [float(np.abs(one[task] - other[task]).max()) for task in one]
    return max(found)


def _forward(model: Ranker, catalogue: Catalogue, events: Events, queries: Queries) -> dict[str, torch.Tensor]:
    """One pass over the items that it needs, as in training (learning/forward.py), without dropout."""
    rows = torch.unique(torch.cat([events.item_BT.flatten(), queries.item_BQ.flatten(), events.item_BT.new_zeros(1)]))
    items_RW = model.item_vectors(take_rows(catalogue, rows), rows)
    events = replace(events, item_BT=torch.searchsorted(rows, events.item_BT.contiguous()))
    queries = replace(queries, item_BQ=torch.searchsorted(rows, queries.item_BQ.contiguous()))
    return model.score(model.user_state(events, items_RW), queries, items_RW)


def _one_each(events: Events, queries: Queries) -> tuple[Events, Queries]:
    """The one user's events (1, T) as many times as there are candidates (1, Q); each row asks for one."""
    size = queries.item_BQ.shape[1]

    def repeated(value: torch.Tensor) -> torch.Tensor:
        return value.expand(size, *value.shape[1:]).contiguous()

    rows = replace(
        events,
        item_BT=repeated(events.item_BT),
        request_BT=repeated(events.request_BT),
        time_BT=repeated(events.time_BT),
        labels_BT={name: repeated(value) for name, value in events.labels_BT.items()},
        user_B=repeated(events.user_B),
        user_features={name: repeated(value) for name, value in events.user_features.items()},
        key_B=repeated(events.key_B),
    )
    context = {name: value.transpose(0, 1) for name, value in queries.context.items()}
    return rows, Queries(queries.item_BQ.T, queries.time_BQ.T, queries.visible_before_BQ.T, context)
