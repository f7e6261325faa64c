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

import torch
from torch import Tensor
from torch.nn import functional

from rayrank.learning.collectives import Collectives
from rayrank.models.layers import IdTable

BETAS, EPS = (0.9, 0.99), 1e-8
"""Of AdamW."""
_FLUSH = 10_000
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
        self.begin()

    def begin(self) -> None:
        """All rows are up to date."""
        self.base = self.step
        self._values_7S[:, 0] = self._nothing_skipped()

    def advance(self, rate: float, weight_decay: float, average_decay: float) -> None:
        """One more step, at a learning rate."""
        count, self.step = self.step - self.base + 1, self.step + 1
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

    def made_up(self, weight_RC: Tensor, kept_R3C: Tensor, last_R: Tensor) -> tuple[Tensor, Tensor]:
        """Rows with their moments and averages as they are now; as they were at steps ``last_R`` given."""
        found_7R1 = self._values_7S[:, last_R.long() - self.base].unsqueeze(-1)
        d, s, s_eps, e, p, q, q_eps = found_7R1.unbind(0)
        m_RC, v_RC, average_RC = kept_R3C.unbind(1)
        root_RC, skipped_R1 = v_RC.sqrt(), (self.step - last_R.double()).unsqueeze(-1)
        # 0 / 0 where nothing was skipped: any ε' will do.
        eps, average_eps = (s_eps / s).nan_to_num(EPS).float(), (q_eps / q).nan_to_num(EPS).float()
        made_RC = d.float() * weight_RC - s.float() * m_RC / (root_RC + eps)
        average_RC = e.float() * average_RC + p.float() * weight_RC - q.float() * m_RC / (root_RC + average_eps)
        m_RC, v_RC = m_RC * (BETAS[0] ** skipped_R1).float(), v_RC * (BETAS[1] ** skipped_R1).float()
        return made_RC, torch.stack([m_RC, v_RC, average_RC], dim=1)

    def tensors(self) -> dict[str, Tensor]:
        """What a snapshot needs to go on."""
        values = self._values_7S[:, : self.step - self.base + 1]
        return {"skipped": values, "steps": torch.tensor([self.base, self.step])}

    def put_back(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what :meth:`tensors` gave."""
        self.base, self.step = tensors["steps"].tolist()
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
        self._looked: list[tuple[Tensor, Tensor]] = []

    def look(self, index: Tensor) -> Tensor:
        """(…, C) rows of the table; their gradients are collected apart from it."""
        rows_R, place = torch.unique(index, return_inverse=True)
        self.make_up(rows_R)
        leaf_RC = self.weight_NC[rows_R].requires_grad_()
        self._looked.append((rows_R, leaf_RC))
        return functional.embedding(place, leaf_RC)

    def collected(self) -> tuple[Tensor, Tensor]:
        """Rows that were looked at, rising, and the sums of their gradients; they are forgotten here."""
        assert self.table.weight.grad is None, "an id table got a gradient as large as itself"
        looked, self._looked = self._looked, []
        rows = [rows_R for rows_R, _ in looked] or [torch.zeros(0, dtype=torch.int64, device=self.weight_NC.device)]
        rows_R, place = torch.unique(torch.cat(rows), return_inverse=True)
        gradient_RC = self.weight_NC.new_zeros(len(rows_R), self.weight_NC.shape[1])
        for (_, leaf_RC), place_R in zip(looked, place.split([len(found) for found in rows]), strict=False):
            if leaf_RC.grad is not None:
                gradient_RC.index_add_(0, place_R, leaf_RC.grad)
        return rows_R, gradient_RC

    def step(self, rows_R: Tensor, gradient_RC: Tensor, rates: tuple[float, float, float]) -> None:
        """AdamW and the average, on rows that are up to date; ``rates``: of learning, of both decays."""
        rate, weight_decay, average_decay = rates
        number = self._skipped.step
        weight_RC, kept_R3C = self.weight_NC[rows_R], self.kept_N3C[rows_R]
        m_RC, v_RC, average_RC = kept_R3C.unbind(1)
        weight_RC.mul_(1.0 - rate * weight_decay)
        m_RC.lerp_(gradient_RC, 1.0 - BETAS[0])
        v_RC.mul_(BETAS[1]).addcmul_(gradient_RC, gradient_RC, value=1.0 - BETAS[1])
        below_RC = (v_RC.sqrt() / (1.0 - BETAS[1] ** number) ** 0.5).add_(EPS)
        weight_RC.addcdiv_(m_RC, below_RC, value=-rate / (1.0 - BETAS[0] ** number))
        average_RC.lerp_(weight_RC, 1.0 - average_decay)
        self._put(rows_R, weight_RC, kept_R3C)

    def make_up(self, rows_R: Tensor) -> None:
        """Bring some rows up to date."""
        last_R = self.last_N[rows_R]
        stale = last_R < self._skipped.step
        rows_R = rows_R[stale]
        self._put(rows_R, *self._skipped.made_up(self.weight_NC[rows_R], self.kept_N3C[rows_R], last_R[stale]))

    def make_up_all(self) -> None:
        """Bring every row up to date."""
        for part in self._chunks():
            now = self._skipped.made_up(self.weight_NC[part], self.kept_N3C[part], self.last_N[part])
            self.weight_NC[part], self.kept_N3C[part] = now
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

    def _put(self, rows_R: Tensor, weight_RC: Tensor, kept_R3C: Tensor) -> None:
        self.weight_NC[rows_R], self.kept_N3C[rows_R] = weight_RC, kept_R3C
        self.last_N[rows_R] = self._skipped.step


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
        every = [[rows_R.int().cpu() for rows_R, _ in mine]]
        if collectives.world > 1 and mine:
            every = collectives.all_gather_objects(every[0])
        self._found = []
        for number, (rows_R, gradient_RC) in enumerate(mine):
            union_R = torch.unique(torch.cat([of_rank[number] for of_rank in every])).to(rows_R)
            leaf_RC = gradient_RC.new_zeros(len(union_R), gradient_RC.shape[1])
            leaf_RC.grad = torch.zeros_like(leaf_RC).index_copy_(0, torch.searchsorted(union_R, rows_R), gradient_RC)
            self._found.append((union_R, leaf_RC))
        return [leaf_RC for _, leaf_RC in self._found]

    def step(self, share: float, average_decay: float) -> None:
        """Update what :meth:`gather` found, its gradients summed and clipped, at a share of the peak learning rate."""
        if not self._tables:
            return
        for lazy, (rows_R, _) in zip(self._tables, self._found, strict=True):
            lazy.make_up(rows_R)
        rates = self._rate * share, self._weight_decay, average_decay
        self._skipped.advance(*rates)
        for lazy, (rows_R, leaf_RC) in zip(self._tables, self._found, strict=True):
            assert leaf_RC.grad is not None
            lazy.step(rows_R, leaf_RC.grad, rates)
        self._found = []
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
