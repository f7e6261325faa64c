"""One model at work: rows of the request in, scores by task out. Used by student, teacher, retriever and batch alike.

The catalogue's table is used as it is; only when a request touches items that the release does not hold (put since, or
described in it), the rows that it touches are gathered from all tables. Knows a bundle; knows nothing about requests,
users' ids or other stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayrank.batch import FAR, Catalogue, Events, Queries
from rayrank.bundle import Bundle
from rayrank.bundle.info import Backend
from rayrank.config import ConfigError
from rayrank.models.encoder import TextEncoder
from rayrank.ranking.context import ColdItems, Scored, UserContext
from rayrank.ranking.fusion import task_scores
from rayrank.ranking.growth import Fresh
from rayrank.ranking.items import DESCRIBED
from rayrank.ranking.joined import alike, joined_events, joined_queries
from rayrank.ranking.past import CandidateContext
from rayrank.ranking.store import History

Request = tuple[UserContext, np.ndarray, ColdItems]
"""What :meth:`Scorer.score` is asked: a user, catalogue rows (int64 (Q,)), described items."""


@dataclass(frozen=True)
class Put:
    """A items that were put while serving, behind those of the release."""

    rows_AW: Tensor  # packed, as Ranker.item_vectors gives them
    released: np.ndarray  # int64 (A,): rows of the release that they replace, 0 none


class Scorer:
    """Scores candidates of one request with one bundle."""

    def __init__(self, bundle: Bundle, backend: Backend | None = None) -> None:
        """``backend``: what scores candidates; by default what the bundle was made for. The rest is torch's."""
        self.bundle, self.model = bundle, bundle.model
        self._graphs = None if backend == "torch" else bundle.graphs
        if backend == "onnx" and self._graphs is None:
            rule = "this bundle holds no graphs of its ranker"
            raise ConfigError("backend", backend, rule, "compress it with method.kind: onnx_ranker, or use torch")
        self.schema = bundle.info.data_schema
        self.window = bundle.info.window
        self._of_candidates = CandidateContext(bundle)
        size = bundle.items_NW.shape[1]
        self.put = Put(torch.zeros(0, size), np.zeros(0, np.int64))

    def grow(self, fresh: Fresh) -> None:
        """Append the rows of items that were put while serving."""
        if not len(fresh.cold):
            return
        tables, start, vectors = [self.put.rows_AW], 0, fresh.cold.vectors
        for size in fresh.groups:
            some = np.arange(start, start + size)
            with torch.inference_mode():
                of_texts = None if vectors is None else vectors[some]
                tables.append(self._packed(fresh.cold, some, of_texts, fresh.released[some]))
            start += size
        self.put = Put(torch.cat(tables), np.append(self.put.released, fresh.released))

    @property
    def put_retrieval(self) -> np.ndarray:
        """float32 (A, R): the items' side of retrieval of what was put."""
        with torch.inference_mode():
            return np.ascontiguousarray(self.model.retrieval_items(self.put.rows_AW).numpy())

    def released(self, rows: np.ndarray) -> np.ndarray:
        """Rows as the release has them: of an item that was put again the one before, of a new one 0."""
        base, put = len(self.bundle.items_NW), self.put.released
        if rows.max(initial=0) < base:
            return rows
        place = rows - base
        return np.where(place < 0, rows, np.where(place < len(put), np.append(put, 0)[place.clip(0, len(put))], 0))

    def score(self, context: UserContext, candidates: np.ndarray, cold: ColdItems) -> Scored:
        """Scores of catalogue rows (int64 (Q,)); described items are rows from ``DESCRIBED`` on."""
        with torch.inference_mode():
            rows, items_RW, texts = self._table(context, candidates, cold)
            logits = self._logits(self._events(context, rows), self._queries(context, candidates, rows), items_RW)
            values = {task: v[0].float().numpy() for task, v in logits.items()}
        return Scored(task_scores(values, self.schema), texts)

    def score_many(self, requests: Sequence[Request]) -> list[Scored]:
        """What :meth:`score` says of each request, to 1e-5, in one call of the model for each of :meth:`groups`."""
        found = dict[int, Scored]()
        for group in self.groups(requests):
            some = [requests[number] for number in group]
            found |= zip(group, self._together(some) if len(some) > 1 else [self.score(*some[0])], strict=True)
        return [found[number] for number in range(len(requests))]

    def company(self, requests: Sequence[Request]) -> list[int]:
        """Numbers of the requests that are scored together with the first one, itself included."""
        return next(sorted(group) for group in self.groups(requests) if 0 in group)

    def groups(self, requests: Sequence[Request]) -> list[list[int]]:
        """Numbers of the requests that are scored together.

        Alone are requests that touch items beyond the catalogue, which have tables of their own; all, where the backend
        takes one at a time; and all, where the model reads the texts of candidates: such a call is all arithmetic, and
        who is first would only wait for the others.
        """
        single = self._graphs is not None or self.model.item_tokens > 0
        known = [n for n, r in enumerate(requests) if not single and self._known(*r[:2])]
        sizes = [(max(1, min(len(requests[n][0].history), self.window)), len(requests[n][1])) for n in known]
        alone = [[n] for n in range(len(requests)) if n not in set(known)]
        return [[known[place] for place in group] for group in alike(sizes)] + alone

    def _together(self, requests: Sequence[Request]) -> list[Scored]:
        """Requests of the catalogue's own rows in one call."""
        with torch.inference_mode():
            events = joined_events([self._events(context, None) for context, _, _ in requests])
            queries = joined_queries([self._queries(context, rows, None) for context, rows, _ in requests])
            logits = self._logits(events, queries, self.bundle.items_NW)
            values = {task: v.float().numpy() for task, v in logits.items()}
        sizes = [len(rows) for _, rows, _ in requests]
        own = [{task: v[n, :size] for task, v in values.items()} for n, size in enumerate(sizes)]
        return [Scored(task_scores(some, self.schema)) for some in own]

    def _logits(self, events: Events, queries: Queries, items_RW: Tensor) -> dict[str, Tensor]:
        """The one place where a backend is chosen."""
        if self._graphs is not None:
            return self._graphs.score(self.model, events, queries, items_RW)
        return self.model.score(self.model.user_state(events, items_RW), queries, items_RW)

    def user_vector(self, context: UserContext, cold: ColdItems) -> np.ndarray:
        """float32 (R,): the user's side of retrieval."""
        with torch.inference_mode():
            rows, items_RW, _ = self._table(context, np.zeros(0, np.int64), cold)
            state = self.model.user_state(self._events(context, rows), items_RW)
            after = torch.tensor([[_after(context.history)]], dtype=torch.int32)
            return self.model.retrieval(state, after)[0, 0].float().numpy()

    @cached_property
    def retrieval_items(self) -> np.ndarray:
        """float32 (N, R): the items' side of retrieval."""
        with torch.inference_mode():
            return np.ascontiguousarray(self.model.retrieval_items(self.bundle.items_NW).numpy())

    @property
    def reads(self) -> bool:
        """Whether :meth:`encode` can read texts."""
        return isinstance(getattr(self.model, "encoder", None), TextEncoder) and self._tokenizer is not None

    def encode(self, cold: ColdItems, wanted: np.ndarray | None = None) -> np.ndarray | None:
        """float32 (M, D) text vectors; NaN where neither known nor ``wanted`` (bool (M,)). None without an encoder."""
        encoder = getattr(self.model, "encoder", None)
        if not len(cold) or not isinstance(encoder, TextEncoder) or self._tokenizer is None:
            return None
        vectors = np.full((len(cold), encoder.width), np.nan, np.float32)
        if cold.vectors is not None and cold.vectors.shape == vectors.shape:
            vectors[:] = cold.vectors
        missing = np.isnan(vectors[:, 0]) & (True if wanted is None else wanted)
        if missing.any():
            ids, offsets = self._tokenise([cold.texts[j] for j in np.flatnonzero(missing)])
            with torch.inference_mode():
                vectors[missing] = encoder.encode(ids, offsets, torch.arange(len(offsets) - 1)).numpy()
        return vectors

    def _tokenise(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Texts back to back: int32 token ids and int64 offsets. An item without text has no tokens, as in training."""
        tokens = [e.ids if t else [] for t, e in zip(texts, self._tokenizer.encode_batch(texts), strict=True)]
        offsets = torch.as_tensor(np.cumsum([0, *map(len, tokens)]))
        return torch.as_tensor([i for t in tokens for i in t], dtype=torch.int32), offsets

    def _table(
        self, context: UserContext, candidates: np.ndarray, cold: ColdItems
    ) -> tuple[np.ndarray | None, Tensor, np.ndarray | None]:
        """(rows of a table, the table, text vectors if any were encoded).

        The catalogue's own table with rows None when nothing is new; else the distinct rows of the request (rising,
        row 0 first) and their packed items.
        """
        base, put_AW = len(self.bundle.items_NW), self.put.rows_AW
        if self._known(context, candidates):
            return None, self.bundle.items_NW, None
        history = context.history.last(self.window).item
        rows = np.unique(np.concatenate([np.zeros(1, np.int64), history.astype(np.int64), candidates]))
        put, new = rows[(rows >= base) & (rows < base + len(put_AW))] - base, rows[rows >= DESCRIBED] - DESCRIBED
        ahead = len(rows) - int((rows < base).sum()) - len(put) - len(new)  # put, but this process does not know it yet
        tables = [
            self.bundle.items_NW.index_select(0, torch.as_tensor(rows[rows < base])),
            put_AW.index_select(0, torch.as_tensor(put)),
            self.bundle.items_NW[:1].expand(ahead, -1),
        ]
        if not len(new):
            return rows, torch.cat(tables), None
        wanted = np.zeros(len(cold), bool)
        wanted[new] = True
        encoded = self.encode(cold, wanted)
        vectors = encoded if encoded is not None else cold.vectors
        fresh = self._packed(cold, new, None if vectors is None else vectors[new], np.zeros(len(new), np.int64))
        return rows, torch.cat([*tables, fresh]), encoded

    def _known(self, context: UserContext, candidates: np.ndarray) -> bool:
        """Whether the catalogue holds all items that the models will see."""
        history = context.history.last(self.window).item
        return bool(max(history.max(initial=0), candidates.max(initial=0)) < len(self.bundle.items_NW))

    def _packed(self, cold: ColdItems, new: np.ndarray, vectors: np.ndarray | None, released: np.ndarray) -> Tensor:
        """float32 (len(new), W): rows of some described items with these text vectors and trained ids."""
        part = Catalogue(
            features={name: torch.as_tensor(value[new]) for name, value in cold.features.items()},
            count_N=torch.zeros(len(new)),
            vectors_ND=self._text(vectors, len(new)),
            **self._read(cold, new),
        )
        return self.model.item_vectors(part, torch.as_tensor(released)).float()

    def _read(self, cold: ColdItems, new: np.ndarray) -> dict[str, Tensor]:
        """Tokens of new items, for a model that reads them."""
        if not self.model.item_tokens:
            return {}
        ids, offsets = self._tokenise([cold.texts[j] for j in new])
        return {"token_ids": ids, "token_offsets": offsets}

    def _text(self, vectors: np.ndarray | None, count: int) -> Tensor | None:
        """Text vectors of new items; zeros where there is none, as for the unknown item."""
        if self.bundle.text_ND is None:
            return None
        width = self.bundle.text_ND.shape[1]
        if vectors is None or vectors.shape[1] != width:
            return torch.zeros(count, width)
        return torch.nan_to_num(torch.as_tensor(vectors))

    def _events(self, context: UserContext, rows: np.ndarray | None) -> Events:
        history = context.history.last(self.window)
        if not len(history):
            history = _padding(tuple(history.labels))
        return Events(
            item_BT=torch.as_tensor(_places(rows, history.item))[None],
            request_BT=torch.as_tensor(history.request.astype(np.int32))[None],
            time_BT=torch.as_tensor(history.time.astype(np.int64))[None],
            labels_BT={t: torch.as_tensor(np.array(v, np.float32))[None] for t, v in history.labels.items()},
            user_B=torch.tensor([context.user]),
            user_features={name: torch.as_tensor(np.array(v))[None] for name, v in context.features.items()},
            key_B=torch.zeros(1, dtype=torch.int64),
            whole=bool(len(context.history)),  # padding must not be seen
        )

    def _queries(self, context: UserContext, candidates: np.ndarray, rows: np.ndarray | None) -> Queries:
        size = len(candidates)
        after = _after(context.history)
        shared = {n: torch.as_tensor(np.array(v)).expand(1, size, *v.shape) for n, v in context.context.items()}
        own = {n: torch.as_tensor(v)[None] for n, v in self._of_candidates(context, self.released(candidates)).items()}
        return Queries(
            item_BQ=torch.as_tensor(_places(rows, candidates))[None],
            time_BQ=torch.full((1, size), context.time, dtype=torch.int64),
            visible_before_BQ=torch.full((1, size), after, dtype=torch.int32),
            context=shared | own,
        )

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer  # only bundles with an encoder need it

        folder, encoder = self.bundle.tokenizer_folder, self.bundle.info.encoder
        if folder is None or encoder is None:
            return None
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(encoder.max_tokens)
        return tokenizer


def _places(rows: np.ndarray | None, items: np.ndarray) -> np.ndarray:
    """int64 rows of the request's table."""
    return items.astype(np.int64) if rows is None else np.searchsorted(rows, items)


def _after(history: History) -> int:
    """A request number later than every event's."""
    return int(history.request[-1]) + 1 if len(history) else 0


def _padding(tasks: tuple[str, ...]) -> History:
    """One event that no query sees: a batch has at least one position."""
    missing = {task: np.full(1, np.nan, np.float32) for task in tasks}
    return History(np.zeros(1, np.int32), np.full(1, FAR, np.int32), np.zeros(1, np.int64), missing)
