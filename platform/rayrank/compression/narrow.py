"""Which units of a student can go, and the training that mends what their loss broke.

Importance is the first-order Taylor estimate of how far everything that the student says would move if the unit's
output became 0 (Molchanov et al., ICLR 2017). What it says are the sequence path's logits, profiles and both sides of
retrieval, each on a scale of its own spread. Recovery is regression of what the original says, on histories of the
train part; the static path and the tables of ids are left as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from rayrank.batch import Catalogue, SequenceBatch
from rayrank.compression.recovery import recover
from rayrank.compression.spec import Narrow, StudentRecovery
from rayrank.config import ConfigError
from rayrank.learning.plan import pieces, take
from rayrank.models.narrower import gate, heads_of, narrowed, sizes_of
from rayrank.models.ranker import take_rows
from rayrank.models.student import Student
from rayrank.sources.collate import collate
from rayrank.sources.dataset import Dataset

_SIGNS = 4

Said = dict[str, Tensor]


@dataclass(frozen=True)
class Histories:
    """Sequences of the train part, a few at a time, in an order by seed."""

    dataset: Dataset
    sequences: int
    seed: int

    def batches(self) -> Iterator[SequenceBatch]:
        """Without end."""
        order, groups = torch.Generator().manual_seed(self.seed), self.dataset.groups()
        while True:
            for place in torch.randperm(len(groups), generator=order).tolist():
                for piece in pieces(collate(self.dataset.read_group(*groups[place]), self.dataset.schema)):
                    rows = torch.randperm(len(piece.part_BT), generator=order)
                    yield from (take(piece, few) for few in rows.split(self.sequences))


def narrow(
    model: Student, spec: Narrow, dataset: Dataset, catalogue: Catalogue, progress: Callable[[str], None]
) -> Student:
    """A smaller student; ``model`` is left as it is.

    Raises:
        ConfigError: no more units than are to be kept.
    """
    _check(model, spec)
    given = Histories(dataset, spec.recovery.sequences, spec.recovery.seed)
    judged = list(islice(given.batches(), spec.judged_batches))
    scale = _spread([said(model, batch, catalogue) for batch in judged])
    wanted = {"width": spec.width, "taste": spec.taste_width, "hidden": spec.hidden}
    wanted |= dict.fromkeys(heads_of(model), spec.hidden)
    wanted["second"] = None if spec.hidden is None else spec.hidden // 2
    progress("measuring units")
    kept = {}
    for name, scores in importance(model, judged, catalogue, scale).items():
        count = wanted[name] or len(scores)
        kept[name] = scores.topk(count).indices.sort().values
    smaller = narrowed(model, kept)
    _report(model, smaller, (judged, catalogue, scale), "after pruning", progress)
    if spec.recovery.steps:
        _recover((model, smaller), spec.recovery, (given.batches(), catalogue, scale), progress)
        _report(model, smaller, (judged, catalogue, scale), "after recovery", progress)
    return smaller.eval()


def said(model: Student, batch: SequenceBatch, catalogue: Catalogue, taste_gates: Tensor | None = None) -> Said:
    """What the sequence path says of a batch's own items, from events of the train part alone."""
    rows, place_BT = torch.unique(batch.events.item_BT, return_inverse=True)
    items_RW = model.item_vectors(take_rows(catalogue, rows), rows)
    if taste_gates is not None:
        one = items_RW.new_ones(items_RW.shape[1] - model.spec.width - len(taste_gates))
        items_RW = items_RW * torch.cat([items_RW.new_ones(model.spec.width), taste_gates, one])
    train_until_B = torch.minimum(batch.valid_from_B, batch.test_from_B)
    queries = batch.streaming()
    before_BQ = torch.minimum(queries.visible_before_BQ, train_until_B.unsqueeze(1))
    queries = replace(queries, item_BQ=place_BT, visible_before_BQ=before_BQ)
    state = model.user_state(replace(batch.events, item_BT=place_BT), items_RW)
    found = {"logits": model.sequence_logits(state, queries, items_RW, None)}
    found["retrieval"] = model.retrieval(state, before_BQ)[..., :-1]
    found["items"] = model.retrieval_items(items_RW)
    return found | {f"profile.{n}": value for n, value in model.profiles(state, train_until_B).items()}


def importance(model: Student, judged: list[SequenceBatch], catalogue: Catalogue, scale: Said) -> dict[str, Tensor]:
    """Units by name -> importance of each: Σ (∂ what is said / ∂ gate)², estimated from random signs (Hutchinson)."""
    gates = {name: torch.ones(size, requires_grad=True) for name, size in sizes_of(model).items()}
    undo = [gate(model.items.norm, gates["width"], given=False)]
    undo += [gate(m, gates[n], given=True) for n, m in (("hidden", model.second), ("second", model.output))]
    undo += [gate(head.second, gates[name], given=True) for name, head in heads_of(model).items()]
    found = {name: torch.zeros_like(gates[name]) for name in gates}
    signs = torch.Generator().manual_seed(0)
    try:
        for batch in judged:
            with torch.enable_grad():
                parts = _scaled(said(model, batch, catalogue, gates["taste"]), scale)
            for number in range(_SIGNS):
                total = sum(
                    (value * (torch.randint(0, 2, value.shape, generator=signs) * 2.0 - 1.0)).sum() for value in parts
                )
                assert isinstance(total, Tensor)
                keep = number < _SIGNS - 1
                slopes = torch.autograd.grad(total, list(gates.values()), retain_graph=keep, allow_unused=True)
                for name, slope in zip(gates, slopes, strict=True):
                    if slope is not None:
                        found[name] = found[name] + slope.square()
    finally:
        for take_back in undo:
            take_back()
    return found


def _recover(
    models: tuple[Student, Student],
    spec: StudentRecovery,
    given: tuple[Iterator[SequenceBatch], Catalogue, Said],
    progress: Callable[[str], None],
) -> None:
    (model, smaller), (batches, catalogue, scale) = models, given
    left = [*smaller.static_modules(), *smaller.id_tables(), *([smaller.encoder] if smaller.encoder else [])]
    fixed = {id(p) for module in left for p in module.parameters()}
    parameters = [p.requires_grad_(True) for p in smaller.parameters() if id(p) not in fixed]

    def losses() -> Iterator[Tensor]:
        for batch in batches:
            with torch.no_grad():
                wanted = said(model, batch, catalogue)
            yield distance(wanted, said(smaller, batch, catalogue), scale)

    recover(parameters, spec, losses(), progress)
    smaller.requires_grad_(False)


def distance(wanted: Said, found: Said, scale: Said) -> Tensor:
    """Mean squared difference of everything said, in units of its variance."""
    pairs = zip(_scaled(wanted, scale), _scaled(found, scale), strict=True)
    return torch.stack([(a - b).square().mean() for a, b in pairs]).mean()


def _scaled(values: Said, scale: Said) -> list[Tensor]:
    return [values[name] / scale[name] for name in scale]


def _spread(every: list[Said]) -> Said:
    """Deviation of each thing said; what never varies is left out."""
    joined = {name: torch.cat([values[name].detach().flatten() for values in every]) for name in every[0]}
    found = {name: values.std() for name, values in joined.items() if len(values) > 1}
    return {name: value for name, value in found.items() if value > 0}


def _report(
    model: Student,
    smaller: Student,
    given: tuple[list[SequenceBatch], Catalogue, Said],
    when: str,
    progress: Callable[[str], None],
) -> None:
    judged, catalogue, scale = given
    with torch.no_grad():
        gaps = [distance(said(model, b, catalogue), said(smaller, b, catalogue), scale) for b in judged]
    progress(f"{when}: {float(torch.stack(gaps).mean()):.4f} of the variance of what it says is lost")


def _check(model: Student, spec: Narrow) -> None:
    there = model.spec
    for name in ("hidden", "width", "taste_width"):
        wanted = getattr(spec, name)
        if wanted is not None and wanted >= getattr(there, name):
            rule = f"the student has {getattr(there, name)}"
            raise ConfigError(f"method.{name}", wanted, rule, "keep fewer, or leave it out")
