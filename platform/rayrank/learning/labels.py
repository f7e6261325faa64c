"""What a teacher says: its logits at every target, and at items sampled from the whole catalogue.

The second kind is the larger part of what a teacher knows. At its own training targets a teacher repeats the labels it
has learnt; about other items it has an honest opinion, and a student may ask for as many as it likes (cf. ranking
distillation on unobserved items, Tang & Wang, KDD 2018; data-set expansion, Bucila et al., KDD 2006).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from rayrank.batch import Catalogue, SequenceBatch
from rayrank.learning.plan import piece_rows, take
from rayrank.models.noise import Noise
from rayrank.models.ranker import Ranker, UserState
from rayrank.objectives.targets import pack
from rayrank.schema import TRAIN


@dataclass(frozen=True)
class Teacher:
    """A model, its packed items and its share of the opinion."""

    model: Ranker
    items_NW: Tensor
    weight: float = 1.0

    @staticmethod
    def of(model: Ranker, catalogue: Catalogue) -> Teacher:
        """Alone, with its items computed here."""
        with torch.inference_mode():
            return Teacher(model, model.item_vectors(catalogue))


class Sampler:
    """Draws other items in proportion to (training count + 1) ** power.

    From the whole catalogue, whatever the user has seen: an item that the user knows comes up now and then, and the
    teacher's opinion of it is as good as its soft label. Items with a negative count are never drawn.
    """

    def __init__(self, count_N: Tensor, samples: int, power: float = 0.5, seed: int = 0) -> None:
        weight_N = (count_N.double().cpu() + 1.0).clamp_min(0.0) ** power * (count_N.cpu() >= 0)
        weight_N[0] = 0.0
        self._edges, self.samples, self._noise = weight_N.cumsum(0) / weight_N.sum(), samples, Noise(seed, 0)
        self.rows = len(weight_N)
        """Of the catalogue."""
        self.log_count_N = (weight_N / weight_N.sum() * samples).log().float()
        """float32: log of how often each row is to be expected among the samples."""

    def draw(self, row: Tensor) -> Tensor:
        """int64 (…, S) catalogue rows for source rows (…): the same for the same row, whoever asks."""
        number = torch.arange(self.samples, device=row.device)
        drawn = self._noise.uniform("unseen", row.unsqueeze(-1) * self.samples + number)
        place = torch.searchsorted(self._edges, drawn.double().cpu(), right=True)
        return place.clamp_max(len(self._edges) - 1)


def taught(
    teachers: Sequence[Teacher],
    batch: SequenceBatch,
    sampler: Sampler | None,
    views: Sequence[SequenceBatch] | None = None,
    states: bool = False,
) -> SequenceBatch:
    """The batch with the teachers' mean streaming logits at every target, and at sampled items of train targets.

    Beside them how far several teachers are apart (weighted standard deviation), and their mean logits of profiles,
    given the events before valid and test. A task is told by the teachers that have it.

    Args:
        teachers: who is asked.
        batch: sequences.
        sampler: draws the other items; None: there are none.
        views: the same sequences as each teacher reads them, where features differ; None: as they are in ``batch``.
        states: also the teachers' user states before each train target, of length one each, side by side.
    """
    views = views or [batch] * len(teachers)
    names = [n for n in batch.events.labels_BT if any(n in teacher.model.event_tasks for teacher in teachers)]
    target_BT, train_BT = batch.part_BT > 0, batch.part_BT == TRAIN
    found = Heard.empty(names, tuple(batch.part_BT.shape), len(teachers) > 1)
    item_BTS, others = None, None
    if sampler is not None and sampler.samples:
        item_BTS = sampler.draw(batch.row_BT) * train_BT.unsqueeze(-1)
        others = Heard.empty(names, tuple(item_BTS.shape), len(teachers) > 1)
    profiles: list[dict[str, Tensor]] = []
    user_BTU: list[Tensor] = []
    with torch.inference_mode():
        for rows in piece_rows(batch):
            heard = [Reading.of(teacher, take(view, rows)) for teacher, view in zip(teachers, views, strict=True)]
            found.put(rows, target_BT[rows], say(heard, names, target_BT[rows]))
            for number in range(0 if item_BTS is None else item_BTS.shape[-1]):
                assert item_BTS is not None
                assert others is not None
                said = say(heard, names, train_BT[rows], item_BTS[rows, :, number])
                others.put(rows, train_BT[rows], said, number)
            profiles.append(_profiles(heard, batch.profile_B))
            user_BTU += [_states(heard, train_BT[rows])] if states else []
    return replace(
        batch,
        soft_BT=found.mean,
        spread_BT=found.spread,
        unseen_item_BTS=item_BTS,
        unseen_soft_BTS=others.mean if others else {},
        unseen_spread_BTS=others.spread if others else {},
        state_BTU=torch.cat(user_BTU) if user_BTU else None,
        profile_soft_BC={n: torch.cat([told[n] for told in profiles]) for n in profiles[0]} if profiles else {},
    )


@dataclass(frozen=True)
class Heard:
    """What was said, event task by event task; NaN where nothing was asked."""

    mean: dict[str, Tensor]
    spread: dict[str, Tensor]  # empty with one teacher

    @staticmethod
    def empty(names: Sequence[str], shape: tuple[int, ...], several: bool) -> Heard:
        """Nothing yet."""
        mean, spread = ({n: torch.full(shape, torch.nan) for n in names} for _ in range(2))
        return Heard(mean, spread if several else {})

    def put(self, rows: Tensor, keep_BT: Tensor, said: Said, number: int | None = None) -> None:
        """Write down what was said at the kept positions of some rows (of sampled item ``number``)."""
        sequence, position = keep_BT.nonzero(as_tuple=True)
        for into, values in ((self.mean, said.mean), (self.spread, said.spread)):
            for name, table in into.items():
                (table if number is None else table[..., number])[rows[sequence], position] = values[name]


@dataclass(frozen=True)
class Said:
    """Weighted mean and standard deviation of the teachers' logits by event task, flat."""

    mean: dict[str, Tensor]
    spread: dict[str, Tensor]


@dataclass(frozen=True)
class Reading:
    """A teacher, some sequences as it reads them, and what it keeps of them."""

    teacher: Teacher
    batch: SequenceBatch
    state: UserState

    @staticmethod
    def of(teacher: Teacher, batch: SequenceBatch) -> Reading:
        """Read."""
        return Reading(teacher, batch, teacher.model.user_state(batch.events, teacher.items_NW))


def say(asked: Sequence[Reading], names: Sequence[str], keep_BT: Tensor, item_BT: Tensor | None = None) -> Said:
    """What is said of the kept positions, or of other items there."""
    heard: dict[str, list[tuple[float, Tensor]]] = {name: [] for name in names}
    for one in asked:
        streaming = one.batch.streaming()
        queries, asked_BQ, _ = pack(streaming if item_BT is None else replace(streaming, item_BQ=item_BT), keep_BT)
        said = one.teacher.model.score(one.state, queries, one.teacher.items_NW)
        for name in names:
            if name in said:
                heard[name].append((one.teacher.weight, said[name][asked_BQ].float()))
    mean = {name: _mean(told) for name, told in heard.items()}
    if len(asked) == 1:
        return Said(mean, {})
    squares = {n: [(weight, (value - mean[n]).square()) for weight, value in told] for n, told in heard.items()}
    return Said(mean, {name: _mean(told).sqrt() for name, told in squares.items()})


def _profiles(asked: Sequence[Reading], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Multiclass task -> mean logits (B, classes) by the teachers that have it."""
    heard: dict[str, list[tuple[float, Tensor]]] = {}
    for one in asked:
        before_B = torch.minimum(one.batch.valid_from_B, one.batch.test_from_B)
        for name, value_BC in one.teacher.model.profiles(one.state, before_B).items():
            if name in wanted:
                heard.setdefault(name, []).append((one.teacher.weight, value_BC.float()))
    return {name: _mean(told) for name, told in heard.items()}


def _states(heard: Sequence[Reading], keep_BT: Tensor) -> Tensor:
    """float16 (B, T, U): user states before the kept positions, zeros elsewhere."""
    found = []
    for one in heard:
        count_BT = one.state.visible_count(one.batch.streaming().visible_before_BQ)
        known_BTX = one.teacher.model.known(one.state, count_BT)
        found.append(functional.normalize(known_BTX.float(), dim=-1) * keep_BT.unsqueeze(-1))
    return torch.cat(found, dim=-1).half()


def _mean(told: Sequence[tuple[float, Tensor]]) -> Tensor:
    whole = sum(weight for weight, _ in told)
    return torch.stack([value * (weight / whole) for weight, value in told]).sum(0)
