"""A policy laid over one release: what may be shown, whose score is moved, and the order that follows.

The steps, always in this order: filters (``block``, ``available``) before anything is scored; boosts on the score of
every stage; then, on the order of the strongest stage: dedupe, diversity, pins and caps, exploration. Knows the
catalogue's ids and encoded columns; knows nothing about models, files or requests.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from rayrank.bundle import Bundle
from rayrank.config import ConfigError, digest
from rayrank.features.encode import Hashed, Index, index_for, is_multi
from rayrank.features.state import category_text
from rayrank.ranking.arrange import CapOf, diverse, explored, first_of_each, placed
from rayrank.ranking.context import ColdItems
from rayrank.ranking.growth import Fresh
from rayrank.ranking.items import DESCRIBED, Items
from rayrank.ranking.policy_spec import Match, PolicySpec
from rayrank.ranking.scorer import Scorer
from rayrank.schema import CategoricalFeature, RetrievalTask

_MOST = 1e12
"""A boosted score moves by no more: float32 overflows at 3e38, and what is no number has no place in an order."""


@dataclass(frozen=True)
class ItemFacts:
    """What policies may know of a catalogue of N rows, row 0 unknown."""

    items: Items
    features: Mapping[str, tuple[CategoricalFeature, Index]]  # column -> feature, and how its values are encoded
    columns: Mapping[str, np.ndarray]  # column -> (N,) or (N, V) codes, 0 none
    vectors_ND: np.ndarray | None  # likeness of items; None: the release has neither retrieval nor texts
    put_AD: np.ndarray | None = None  # the same of items that were put while serving

    def grown(self, fresh: Fresh, scorer: Scorer) -> ItemFacts:
        """With items that were put; ``scorer`` knows them already."""
        columns = {
            column: np.concatenate([self.columns[column], fresh.cold.features[f.name]])
            for column, (f, _) in self.features.items()
        }
        if self.vectors_ND is None:
            return replace(self, columns=columns)
        if scorer.schema.of_kind(RetrievalTask):
            return replace(self, columns=columns, put_AD=scorer.put_retrieval[:, :-1])
        width = self.vectors_ND.shape[1]
        before = np.zeros((0, width), np.float32) if self.put_AD is None else self.put_AD
        new = np.zeros((len(fresh.cold), width), np.float32) if fresh.cold.vectors is None else fresh.cold.vectors
        return replace(self, columns=columns, put_AD=np.concatenate([before, new]))

    def likeness(self, rows: np.ndarray) -> np.ndarray:
        """float32 (len(rows), D): vectors of rows; zeros of those that are not known here."""
        assert self.vectors_ND is not None
        base = len(self.vectors_ND)
        found = self.vectors_ND[np.where(rows < base, rows, 0)]
        found[(rows == 0) | (rows >= base)] = 0
        if self.put_AD is not None:
            put = (rows >= base) & (rows < base + len(self.put_AD))
            found[put] = self.put_AD[rows[put] - base]
        return found

    @classmethod
    def of(cls, bundle: Bundle, items: Items) -> ItemFacts:
        """From a bundle of the release; likeness is that of the retrieval vectors, else of the texts."""
        schema, state = bundle.info.data_schema, bundle.features.items
        features = {
            f.column: (f, index_for(f, state)) for f in schema.item_features if isinstance(f, CategoricalFeature)
        }
        encoded = bundle.catalogue().features
        columns = {column: encoded[f.name].numpy() for column, (f, _) in features.items()}
        vectors: np.ndarray | None = None
        if schema.of_kind(RetrievalTask):
            # The last number of a retrieval vector is the item's own base: what makes it popular, not what it is like.
            vectors = np.ascontiguousarray(Scorer(bundle).retrieval_items[:, :-1])
        elif bundle.text_ND is not None:
            vectors = bundle.text_ND.numpy()
        return cls(items, features, columns, vectors)


@dataclass(frozen=True)
class Candidates:
    """Rows of one request (C,), as the flow has them; ids only of those that the catalogue does not know."""

    rows: np.ndarray  # int64: catalogue rows, DESCRIBED + j for described items, 0 unknown
    cold: ColdItems
    ids: Mapping[int, str | None]  # candidate -> id, where the row says none

    def take(self, kept: np.ndarray) -> Candidates:
        """The candidates at these places."""
        ids = {new: self.ids[old] for new, old in enumerate(kept.tolist()) if old in self.ids} if self.ids else {}
        return Candidates(self.rows[kept], self.cold, ids)


@dataclass(frozen=True)
class Standing:
    """The models' verdict on candidates (C,)."""

    order: np.ndarray  # int64 (R,), best first; those left out by min_score are not in it
    score: np.ndarray  # float32 (C,), moved by boosts
    level: np.ndarray  # int8 (C,), strongest stage that scored it; -1: an id that nobody knows, which comes last


@dataclass(frozen=True)
class Arranged:
    """What is shown in the end."""

    order: np.ndarray  # int64 (K,)
    propensity: np.ndarray  # float64 (K,): probability that this item stands at this place
    marks: tuple[tuple[str, ...], ...]  # what the policy did to each


@dataclass(frozen=True)
class _Rule:
    items: tuple[str, ...]
    column: str | None
    codes: np.ndarray


@dataclass(frozen=True)
class _Table:
    """Items as rules see them: the catalogue, or the unknown ones among the candidates."""

    size: int
    find: Callable[[str], Sequence[int]]
    column: Callable[[str], np.ndarray]

    def matched(self, rule: _Rule) -> np.ndarray:
        """bool (size,)."""
        if rule.column is not None:
            found = np.isin(self.column(rule.column), rule.codes)
            return np.asarray(found if found.ndim == 1 else found.any(axis=1))
        found = np.zeros(self.size, bool)
        for item_id in rule.items:
            found[list(self.find(item_id))] = True
        return found


class Policy:
    """A policy that fits a release.

    Raises:
        ConfigError: it names a column or a value that the release does not know.
    """

    def __init__(self, spec: PolicySpec, facts: ItemFacts) -> None:
        self.spec, self.hash, self._facts = spec, digest(spec), facts
        self._block = [self._rule(m, f"block.{i}") for i, m in enumerate(spec.block)]
        self._available = [self._rule(m, f"available.{i}") for i, m in enumerate(spec.available)]
        self._boosts = [(self._rule(b, f"boosts.{i}"), b.times, b.add) for i, b in enumerate(spec.boosts)]
        for i, cap in enumerate(spec.caps):
            self._feature(cap.column, f"caps.{i}.column")
        for i, column in enumerate(spec.dedupe.columns):
            if is_multi(self._feature(column, f"dedupe.columns.{i}")[0]):
                fix = "cap it instead"
                raise ConfigError(f"policy: dedupe.columns.{i}", column, "must hold one value an item", fix)
        if spec.diversity is not None and facts.vectors_ND is None:
            rule = "needs a release with a retrieval task or texts"
            raise ConfigError("policy: diversity", None, rule, "remove it")
        size = next((len(codes) for codes in facts.columns.values()), len(facts.items))
        self._catalogue = _Table(size, self._find, lambda column: facts.columns[column])
        self._allowed_N = self._allowed(self._catalogue) if self._block or self._available else None
        self._moves_N = self._moves(self._catalogue) if self._boosts else None
        self._lost: tuple[np.ndarray, str | None] | None = None

    @cached_property
    def allowed_bits(self) -> np.ndarray | None:
        """uint8 (⌈N / 8⌉,): which catalogue rows may be shown, packed for the way to the retriever; None: all."""
        return None if self._allowed_N is None else np.packbits(self._allowed_N)

    @cached_property
    def pinned_rows(self) -> np.ndarray:
        """int64: catalogue rows of the pinned items that may be shown."""
        rows = np.asarray([self._facts.items.row(pin.item) for pin in self.spec.pins], np.int64)
        allowed = self._allowed_N
        if allowed is not None:
            rows = rows[(rows < len(allowed))]
            rows = rows[allowed[rows]]
        return rows[rows > 0]

    @property
    def lost_pins(self) -> str | None:
        """A warning about pinned items that are never shown; None: there are none.

        Worked out once for every change of the catalogue, which puts a new array of hidden rows in place of the old.
        """
        hidden = self._facts.items.hidden
        known = self._lost
        if known is None or known[0] is not hidden:
            known = self._lost = (hidden, self._lost_among(hidden))
        return known[1]

    def _lost_among(self, hidden: np.ndarray) -> str | None:
        allowed = self._allowed_N
        rows = [self._facts.items.row(pin.item) for pin in self.spec.pins]
        filtered = [
            f"pins.{i}" for i, r in enumerate(rows) if allowed is not None and 0 < r < len(allowed) and not allowed[r]
        ]
        gone = [f"pins.{i}" for i, r in enumerate(rows) if r and r in hidden]
        said = [
            f"{', '.join(some[:5])} {why}"
            for some, why in ((filtered, "filtered"), (gone, "removed or not available"))
            if some
        ]
        return f"policy: pinned items left out: {'; '.join(said)}" if said else None

    def allows(self, asked: Candidates) -> np.ndarray | None:
        """bool (C,): what may be shown; None: everything."""
        if self._allowed_N is None:
            return None
        ahead = (asked.rows >= len(self._allowed_N)) & (asked.rows < DESCRIBED)  # its columns are not known here yet
        return self._spread(asked, self._allowed_N, self._allowed) & ~ahead

    def moved(self, asked: Candidates, score: np.ndarray) -> np.ndarray:
        """float32 (C,): scores after boosts."""
        moves_C2 = self._moves_of(asked)
        return score if moves_C2 is None else (_times(score, moves_C2[:, 0]) + moves_C2[:, 1]).astype(np.float32)

    def arrange(self, asked: Candidates, standing: Standing, k: int | None, key: str) -> Arranged:
        """The first ``k`` (None: all) of the order that the policy makes; ``key`` decides what explores."""
        pins = self._pins(asked)
        pinned = np.asarray(list(pins.values()), np.int64)
        order = standing.order[~np.isin(standing.order, pinned)] if len(pinned) else standing.order
        order = order[self._distinct(asked, np.concatenate([pinned, order]))[len(pinned) :]]
        size = len(order) + len(pins) if k is None else min(k, len(order) + len(pins))
        order = self._spread_out(asked, standing, order, size)
        caps = [CapOf(self._lists(asked, cap.column), cap.most, cap.first) for cap in self.spec.caps]
        whole = placed(order.tolist(), pins, caps) if pins or caps else order.tolist()
        unknown = set(np.flatnonzero(standing.level < 0).tolist())
        explore, fixed = self.spec.exploration, set(pins.values())
        if caps and unknown:  # caps have lifted ids that nobody knows: no value of theirs is too many
            free = [c for c in whole if c not in fixed]
            whole = placed(sorted(free, key=unknown.__contains__), pins, ())
        pool = [c for c in whole[size : size + explore.top] if c not in fixed | unknown]
        found = explored(whole[:size], pool, set(pins), explore.share, key)
        marks = self._marks(asked, found.shown, fixed, found.drawn)
        return Arranged(np.asarray(found.shown, np.int64), found.propensity, marks)

    def _marks(
        self, asked: Candidates, shown: list[int], pinned: set[int], drawn: frozenset[int]
    ) -> tuple[tuple[str, ...], ...]:
        moves_C2 = self._moves_of(asked)
        boosted = set() if moves_C2 is None else set(np.flatnonzero((moves_C2 != (1, 0)).any(axis=1)).tolist())
        marks = {"boosted": boosted, "pinned": pinned, "explored": drawn}
        return tuple(tuple(mark for mark, which in marks.items() if c in which) for c in shown)

    def _pins(self, asked: Candidates) -> dict[int, int]:
        """Place -> candidate, of the pinned items among the candidates."""
        if not self.spec.pins:
            return {}
        ids, found = {item_id: c for c, item_id in asked.ids.items()}, dict[int, int]()
        for pin in self.spec.pins:
            row = self._facts.items.row(pin.item)
            places = np.flatnonzero(asked.rows == row) if row else np.zeros(0, np.int64)
            if len(places) or pin.item in ids:
                found[pin.position] = int(places[0]) if len(places) else ids[pin.item]
        return found

    def _distinct(self, asked: Candidates, order: np.ndarray) -> np.ndarray:
        """bool (len(order),): what stays when of each item, and of each value of a column, only the first stays."""
        kept = np.ones(len(order), bool)
        if self.spec.dedupe.items:
            kept &= first_of_each(asked.rows[order])
        for column in self.spec.dedupe.columns:
            # A repetition that is gone already must not take its value with it.
            left = np.flatnonzero(kept)
            kept[left] = first_of_each(self._codes(asked, column)[order[left]])
        return kept

    def _spread_out(self, asked: Candidates, standing: Standing, order: np.ndarray, count: int) -> np.ndarray:
        """Diversity among the best: those of the strongest stage, whose scores can be compared."""
        spec = self.spec.diversity
        if spec is None or len(order) < 2:
            return order
        top = order[: spec.top]
        top = top[: int(np.argmin(np.append(standing.level[top] == standing.level[top[0]], False)))]
        vectors = self._facts.likeness(asked.rows[top])
        new = top[diverse(standing.score[top], vectors, spec.relevance, count)]
        return np.concatenate([new, order[len(top) :]])

    def _allowed(self, table: _Table) -> np.ndarray:
        found = np.ones(table.size, bool) if not self._available else np.zeros(table.size, bool)
        for rule in self._available:
            found |= table.matched(rule)
        for rule in self._block:
            found &= ~table.matched(rule)
        return found

    def _moves(self, table: _Table) -> np.ndarray:
        """float32 (size, 2): factor and addition."""
        found = np.tile(np.asarray([1, 0], np.float32), (table.size, 1))
        for rule, times, add in self._boosts:
            matched = table.matched(rule)
            factor = np.clip(found[matched, 0] * times, 1 / _MOST, _MOST)  # many of one item
            addition = np.clip(_times(found[matched, 1], times) + add, -_MOST, _MOST)
            found[matched] = np.stack([factor, addition], axis=1)
        return found

    def _moves_of(self, asked: Candidates) -> np.ndarray | None:
        return None if self._moves_N is None else self._spread(asked, self._moves_N, self._moves)

    def _codes(self, asked: Candidates, column: str) -> np.ndarray:
        """(C,) or (C, V)."""
        return self._spread(asked, self._facts.columns[column], lambda table: table.column(column))

    def _lists(self, asked: Candidates, column: str) -> list[list[int]]:
        codes = self._codes(asked, column)
        return list((codes[:, None] if codes.ndim == 1 else codes).tolist())

    def _spread(
        self, asked: Candidates, of_catalogue: np.ndarray, of_rest: Callable[[_Table], np.ndarray]
    ) -> np.ndarray:
        """Values by candidate: looked up for catalogue rows, computed for the others."""
        outside = (asked.rows == 0) | (asked.rows >= len(of_catalogue))
        found = of_catalogue[np.where(outside, 0, asked.rows)]
        if outside.any():
            found[outside] = of_rest(self._rest(asked, np.flatnonzero(outside)))
        return np.asarray(found)

    def _rest(self, asked: Candidates, at: np.ndarray) -> _Table:
        """The candidates that the catalogue does not know, with what the request says of them."""
        rows = asked.rows[at] - DESCRIBED

        def column(name: str) -> np.ndarray:
            known = self._facts.columns[name]
            found = np.zeros((len(at), *known.shape[1:]), known.dtype)
            if (rows >= 0).any():
                found[rows >= 0] = asked.cold.features[self._facts.features[name][0].name][rows[rows >= 0]]
            return found

        ids = [asked.ids.get(c) for c in at.tolist()]
        return _Table(len(at), lambda item_id: [i for i, given in enumerate(ids) if given == item_id], column)

    def _find(self, item_id: str) -> list[int]:
        row = self._facts.items.row(item_id)
        return [row] if 0 < row < self._catalogue.size else []

    def _rule(self, match: Match, where: str) -> _Rule:
        if match.column is None:
            return _Rule(match.items, None, np.zeros(0, np.int64))
        _, index = self._feature(match.column, f"{where}.column")
        if isinstance(index, Hashed):
            rule = "is hashed: other values share the numbers of these"
            raise ConfigError(
                f"policy: {where}.column", match.column, rule, "name a column with a vocabulary, or items"
            )
        codes = []
        for value in match.values:
            text = category_text(value) or ""
            if text not in index:
                near = difflib.get_close_matches(text, list(index), n=3) or list(index)[:10]
                rule = f"no item of the release has this {match.column} (or it was too rare for a number of its own)"
                raise ConfigError(f"policy: {where}.values", value, rule, f"for example: {', '.join(near)}")
            codes.append(index[text])
        return _Rule((), match.column, np.asarray(codes, np.int64))

    def _feature(self, column: str, where: str) -> tuple[CategoricalFeature, Index]:
        if column not in self._facts.features:
            known = ", ".join(sorted(self._facts.features)) or "none"
            raise ConfigError(f"policy: {where}", column, "must be a categorical column of items", f"one of: {known}")
        return self._facts.features[column]


def _times(values: np.ndarray, factor: np.ndarray | float) -> np.ndarray:
    """What a factor makes of scores: one above 1 raises them all, so that those below 0 are divided."""
    return np.asarray(np.where(values < 0, values / factor, values * factor))
