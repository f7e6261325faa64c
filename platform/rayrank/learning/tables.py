"""Large id tables: AdamW and averaging touch the rows of a step, and make up for the steps that a row was not in.

A row without gradient still moves: weight decay shrinks it, AdamW's fading moments carry it on, the average of the
weights follows. All of that is linear in the row's weight p, its average a and its direction u = m / (√v + ε'):

    p ← D p − S u,    a ← E a + P p − Q u,    m ← β₁ᵏ m,    v ← β₂ᵏ v        after k steps without gradient.

The coefficients depend on when the row was last up to date and on nothing else of it, so one list of them, as long as
the steps since all rows were, serves every row. AdamW divides by √(β₂ᵏ v) + ε, which is β₂^(k/2) (√v + ε β₂^(−k/2)):
ε' is the mean of that growing ε over the skipped steps, weighted by what each of them adds, which errs by a few parts
in ten thousand where √v is no larger than ε. All else is exact, so a table learns what whole updates would teach it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rayrank.learning.collectives import Collectives
from rayrank.models.layers import IdTable

BETAS, EPS = (0.9, 0.99), 1e-8
"""Of AdamW."""
_FLUSH = 4_000
"""Steps after which all rows are brought up to date, whatever happens: bounds the list of coefficients."""
_CHUNK = 8_192
"""Rows brought up to date at once, so that they stay in the processor's cache."""
_FADE = 512
"""Steps after which the first moment moves nothing any more: (β₁ / √β₂)⁵¹² is 10⁻²²."""


class Skipped:
    """What steps without gradient have done to a row, by the step that the row was last up to date at."""

    def __init__(self, device: torch.device) -> None:
        self.base = self.step = 0  # all rows were up to date at base; now is step
        self._values_7S = torch.zeros(7, 1024, dtype=torch.float64, device=device)  # D, S, S ε', E, P, Q, Q ε'
        steps_F = torch.arange(_FADE, 0, -1, dtype=torch.float64, device=device)
        self._fade_2F = torch.stack([(BETAS[0] / BETAS[1] ** 0.5) ** steps_F, EPS * (BETAS[0] / BETAS[1]) ** steps_F])
        self._now: Tensor | None = None  # what the values come to for rows, in this step
        self.begin()

    def begin(self) -> None:
        """All rows are up to date."""
        self.base, self._now = self.step, None
        self._values_7S[:, 0] = self._nothing_skipped()

    def advance(self, rate: float, weight_decay: float, average_decay: float) -> None:
        """One more step, at a learning rate."""
        count, self.step, self._now = self.step - self.base + 1, self.step + 1, None
        if count == self._values_7S.shape[1]:
            self._values_7S = functional.pad(self._values_7S, (0, count))
        weight_3S, average_4S = self._values_7S[:3, :count], self._values_7S[3:, :count]
        root = (1.0 - BETAS[1] ** self.step) ** 0.5
        size = rate * root / (1.0 - BETAS[0] ** self.step)
        recent = min(count, _FADE)
        weight_3S *= 1.0 - rate * weight_decay
        weight_3S[1, -recent:] += size * self._fade_2F[0, -recent:]
        weight_3S[2, -recent:] += size * root * self._fade_2F[1, -recent:]
        average_4S *= average_decay
        average_4S[1:] += (1.0 - average_decay) * weight_3S
        self._values_7S[:, count] = self._nothing_skipped()

    def make_up(self, weight_RC: Tensor, kept_R3C: Tensor, last_R: Tensor) -> None:
        """Bring rows, as they were at steps ``last_R``, up to date in place."""
        found_R9 = self._by_step().index_select(0, last_R - self.base)
        d, s, eps, p, q, average_eps, *_ = found_R9.unsqueeze(1).unbind(2)
        m_RC, v_RC, average_RC = kept_R3C.unbind(1)
        root_RC = v_RC.sqrt()
        u_RC, average_u_RC = m_RC / (root_RC + eps), m_RC / (root_RC + average_eps)
        kept_R3C *= found_R9[:, 6:].unsqueeze(2)
        average_RC.addcmul_(p, weight_RC).addcmul_(q, average_u_RC, value=-1.0)
        weight_RC.mul_(d).addcmul_(s, u_RC, value=-1.0)

    def _by_step(self) -> Tensor:
        """float32 (S, 9): D, S, ε', P, Q, ε' of the average, and what the moments and the average are multiplied by."""
        if self._now is None:
            count = self.step - self.base + 1
            d, s, s_eps, e, p, q, q_eps = self._values_7S[:, :count]
            skipped_S = torch.arange(count - 1, -1, -1, dtype=torch.float64, device=d.device)
            # 0 / 0 where nothing was skipped: any ε' will do.
            eps, average_eps = (s_eps / s).nan_to_num_(EPS), (q_eps / q).nan_to_num_(EPS)
            fading = BETAS[0] ** skipped_S, BETAS[1] ** skipped_S
            self._now = torch.stack([d, s, eps, p, q, average_eps, *fading, e], dim=1).float()
        return self._now

    def tensors(self) -> dict[str, Tensor]:
        """What a snapshot needs to go on."""
        values = self._values_7S[:, : self.step - self.base + 1]
        return {"skipped": values, "steps": torch.tensor([self.base, self.step])}

    def put_back(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what :meth:`tensors` gave."""
        self.base, self.step = tensors["steps"].tolist()
        self._now = None
        count = tensors["skipped"].shape[1]
        self._values_7S = functional.pad(tensors["skipped"].to(self._fade_2F.device), (0, count))

    def _nothing_skipped(self) -> Tensor:
        return self._values_7S.new_tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0])


class LazyTable:
    """One table: its weights, and beside each row the two moments and the average (one after another in memory)."""

    def __init__(self, table: IdTable, skipped: Skipped) -> None:
        self.table, self._skipped = table, skipped
        self.weight_NC = table.weight.detach()
        self.kept_N3C = self.weight_NC.new_zeros(len(self.weight_NC), 3, self.weight_NC.shape[1])
        self.kept_N3C[:, 2] = self.weight_NC
        self.last_N = torch.full((len(self.weight_NC),), skipped.step, dtype=torch.int32, device=self.weight_NC.device)
        self._looked: list[tuple[Tensor, Tensor, Tensor]] = []  # rows, leaf, what is kept of them
        self._held: tuple[Tensor, Tensor, Tensor] | None = None  # the same for the step, if all are from one look

    def look(self, index: Tensor) -> Tensor:
        """(…, C) rows of the table as they are now; their gradients are collected apart from it."""
        rows_R, place = torch.unique(index, return_inverse=True)
        weight_RC, kept_R3C = self._up_to_date(rows_R)
        leaf_RC = weight_RC.requires_grad_()
        self._looked.append((rows_R, leaf_RC, kept_R3C))
        return functional.embedding(place, leaf_RC)

    def collected(self) -> tuple[Tensor, Tensor]:
        """Rows that were looked at, rising, and the sums of their gradients; they are forgotten here."""
        assert self.table.weight.grad is None, "an id table got a gradient as large as itself"
        looked = [found for found in self._looked if found[1].grad is not None]
        self._looked, self._held = [], None
        if len(looked) == 1:
            rows_R, leaf_RC, kept_R3C = looked[0]
            self._held = rows_R, leaf_RC.detach(), kept_R3C
            assert leaf_RC.grad is not None
            return rows_R, leaf_RC.grad
        nothing = torch.zeros(0, dtype=torch.int64, device=self.weight_NC.device)
        rows_R, place_X = torch.unique(torch.cat([nothing, *(found[0] for found in looked)]), return_inverse=True)
        gradient_RC = self.weight_NC.new_zeros(len(rows_R), self.weight_NC.shape[1])
        for place_L, (_, leaf_LC, _) in zip(place_X.split([len(found[0]) for found in looked]), looked, strict=True):
            assert leaf_LC.grad is not None
            gradient_RC.index_add_(0, place_L, leaf_LC.grad)
        return rows_R, gradient_RC

    def step(self, rows_U: Tensor, gradient_UC: Tensor, rates: tuple[float, float, float]) -> None:
        """AdamW and the average, on rows that any rank looked at; ``rates``: of learning, of both decays."""
        held, self._held = self._held, None
        if held is None:
            self._learn((rows_U, *self._up_to_date(rows_U)), gradient_UC, rates)
            return
        place_R = torch.searchsorted(rows_U, held[0])
        self._learn(held, gradient_UC.index_select(0, place_R), rates)
        if len(rows_U) == len(place_R):
            return
        others_O = torch.ones_like(rows_U).index_fill_(0, place_R, 0).nonzero()[:, 0]
        rows_O = rows_U.index_select(0, others_O)
        self._learn((rows_O, *self._up_to_date(rows_O)), gradient_UC.index_select(0, others_O), rates)

    def _learn(
        self, now: tuple[Tensor, Tensor, Tensor], gradient_RC: Tensor, rates: tuple[float, float, float]
    ) -> None:
        rows_R, weight_RC, kept_R3C = now
        rate, weight_decay, average_decay = rates
        number = self._skipped.step + 1
        m_RC, v_RC, average_RC = kept_R3C.unbind(1)
        weight_RC.mul_(1.0 - rate * weight_decay)
        m_RC.lerp_(gradient_RC, 1.0 - BETAS[0])
        v_RC.mul_(BETAS[1]).addcmul_(gradient_RC, gradient_RC, value=1.0 - BETAS[1])
        below_RC = v_RC.sqrt().div_((1.0 - BETAS[1] ** number) ** 0.5).add_(EPS)
        weight_RC.addcdiv_(m_RC, below_RC, value=-rate / (1.0 - BETAS[0] ** number))
        average_RC.lerp_(weight_RC, 1.0 - average_decay)
        self.weight_NC.index_copy_(0, rows_R, weight_RC)
        self.kept_N3C.flatten(1).index_copy_(0, rows_R, kept_R3C.flatten(1))
        self.last_N.index_fill_(0, rows_R, number)

    def make_up_all(self) -> None:
        """Bring every row up to date."""
        for part in self._chunks():
            self._skipped.make_up(self.weight_NC[part], self.kept_N3C[part], self.last_N[part])
        self.last_N.fill_(self._skipped.step)

    def swap(self) -> None:
        """Averaged weights for the trained ones, and back."""
        for part in self._chunks():
            trained_RC = self.weight_NC[part].clone()
            self.weight_NC[part] = self.kept_N3C[part, 2]
            self.kept_N3C[part, 2] = trained_RC

    def tensors(self) -> dict[str, Tensor]:
        """Everything but the weights, as views."""
        return {"kept": self.kept_N3C, "last": self.last_N}

    def put_back(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what :meth:`tensors` gave."""
        self.kept_N3C.copy_(tensors["kept"])
        self.last_N.copy_(tensors["last"])

    def _chunks(self) -> Iterator[slice]:
        return (slice(start, start + _CHUNK) for start in range(0, len(self.last_N), _CHUNK))

    def _up_to_date(self, rows_R: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of some rows. (Not by indexing, which is several times slower than index_select.)"""
        weight_RC = self.weight_NC.index_select(0, rows_R)
        kept_R3C = self.kept_N3C.flatten(1).index_select(0, rows_R).unflatten(1, (3, -1))
        self._skipped.make_up(weight_RC, kept_R3C, self.last_N.index_select(0, rows_R))
        return weight_RC, kept_R3C


class LazyTables:
    """The large id tables of a stage; equal on every rank after each step."""

    def __init__(self, tables: Sequence[IdTable], rate: float, weight_decay: float) -> None:
        self._rate, self._weight_decay = rate, weight_decay
        self._skipped = Skipped(tables[0].weight.device if tables else torch.device("cpu"))
        self._tables = [LazyTable(table, self._skipped) for table in tables]
        self._found: list[tuple[Tensor, Tensor]] = []

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Around the forward and backward passes of a step: the tables give rows that are up to date."""
        for lazy in self._tables:
            lazy.table.source = lazy.look
        try:
            yield
        finally:
            for lazy in self._tables:
                lazy.table.source = None

    def gather(self, collectives: Collectives) -> list[Tensor]:
        """The rows that any rank looked at, as leaves (R, C) with this rank's gradients, yet to be summed."""
        mine = [lazy.collected() for lazy in self._tables]
        if collectives.world == 1 or not mine:
            union = [rows_R for rows_R, _ in mine]
        else:
            every = collectives.all_gather_objects([rows_R.int().cpu().numpy() for rows_R, _ in mine])
            union = [torch.from_numpy(np.unique(np.concatenate(of_ranks))) for of_ranks in zip(*every, strict=True)]
        self._found = []
        for (rows_R, gradient_RC), union_U in zip(mine, union, strict=True):
            at_U = union_U.to(rows_R)
            leaf_UC = gradient_RC.new_empty(len(at_U), gradient_RC.shape[1])
            leaf_UC.grad = torch.zeros_like(leaf_UC).index_copy_(0, torch.searchsorted(at_U, rows_R), gradient_RC)
            self._found.append((at_U, leaf_UC))
        return [leaf_UC for _, leaf_UC in self._found]

    def step(self, share: float, average_decay: float) -> None:
        """Update what :meth:`gather` found, its gradients summed and clipped, at a share of the peak learning rate."""
        if not self._tables:
            return
        rates = self._rate * share, self._weight_decay, average_decay
        for lazy, (rows_R, leaf_RC) in zip(self._tables, self._found, strict=True):
            assert leaf_RC.grad is not None
            lazy.step(rows_R, leaf_RC.grad, rates)
        self._found = []
        self._skipped.advance(*rates)
        if self._skipped.step - self._skipped.base >= _FLUSH:
            self.flush()

    def flush(self) -> None:
        """Bring all rows up to date."""
        if self._skipped.step > self._skipped.base:
            for lazy in self._tables:
                lazy.make_up_all()
            self._skipped.begin()

    def swap(self) -> None:
        """Averaged weights for the trained ones, and back; all rows are up to date then."""
        self.flush()
        for lazy in self._tables:
            lazy.swap()

    def tensors(self) -> dict[str, Tensor]:
        """What a snapshot needs beside the weights, as views."""
        if not self._tables:
            return {}
        own = {f"{i}/{name}": value for i, lazy in enumerate(self._tables) for name, value in lazy.tensors().items()}
        return own | self._skipped.tensors()

    def put_back(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what :meth:`tensors` gave."""
        if self._tables:
            self._skipped.put_back(tensors)
        for i, lazy in enumerate(self._tables):
            lazy.put_back({name: tensors[f"{i}/{name}"] for name in lazy.tensors()})
