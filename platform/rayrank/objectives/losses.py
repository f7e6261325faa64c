"""Loss sums of every task, from outputs and targets. Missing labels are NaN and give exactly zero gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from rayrank.config import ConfigError
from rayrank.objectives.lists import Lists, listwise, margins, relaxed
from rayrank.objectives.matching import ITEMS, USER, Matched, gap, matching_weights
from rayrank.objectives.spec import DistillationSpec, ObjectiveSpec
from rayrank.objectives.targets import Targets
from rayrank.schema import BinaryTask, DatasetSchema, EventTask, MulticlassTask, RegressionTask, RetrievalTask

Key = tuple[str, str]
"""(task, term); terms are ``hard``, ``soft``, ``margin``, ``listwise``, ``relaxed``; of vectors ``match``."""
LOGITS = 8.0
"""Values of regression tasks, 0..1, count as logits -4..4 where a term wants logits of them."""


@dataclass(frozen=True)
class Outputs:
    """What a model said about targets."""

    logits_BQ: Mapping[str, Tensor]  # event task -> (B, Q)
    profiles: Mapping[str, Tensor] = field(default_factory=dict)  # multiclass task -> (B, classes)
    retrieval: Mapping[str, Retrieval] = field(default_factory=dict)  # retrieval task -> queries and items
    auxiliary_BQ: Mapping[str, Tensor] = field(default_factory=dict)  # event task -> logits that soft terms are about
    matched: Mapping[str, Matched] = field(default_factory=dict)  # matching term -> vectors


@dataclass(frozen=True)
class Retrieval:
    """The P positive queries of a retrieval task against C negatives that they share, and M of each one's own.

    ``log_q``: log of the number of times that an item is to be expected among the negatives.
    """

    user_PR: Tensor  # user vectors
    positive_PR: Tensor  # vectors of the positives' items
    log_q_P: Tensor
    negative_CR: Tensor  # vectors of the negatives
    log_q_PC: Tensor
    hidden_PC: Tensor  # bool: no negatives of that query, such as accidental hits
    mined_PMR: Tensor | None = None  # vectors of the own negatives
    mined_log_q_PM: Tensor | None = None  # NaN where there is none


@dataclass(frozen=True)
class Terms:
    """Loss sums by task and term (already mixed), and label counts by task."""

    sums: dict[Key, Tensor]
    counts: dict[str, Tensor]

    def total(self, counts: Mapping[str, Tensor], spec: ObjectiveSpec) -> Tensor:
        """Σ weight · sum / count with the counts of all ranks: these sums' part of the step's loss."""
        weights = loss_weights(spec, tuple(counts))
        return torch.stack([weights[t] * value / counts[t].clamp_min(1) for (t, _), value in self.sums.items()]).sum()


def compute(outputs: Outputs, targets: Targets, schema: DatasetSchema, spec: ObjectiveSpec) -> Terms:
    """Loss sums of everything the outputs hold."""
    sums: dict[Key, Tensor] = {}
    for task in schema.event_tasks:
        if task.name in outputs.logits_BQ:
            logits_BQ = outputs.logits_BQ[task.name]
            found = event_losses((logits_BQ, outputs.auxiliary_BQ.get(task.name)), targets, task, spec)
            sums |= {(task.name, term): value for term, value in found.items()}
    for name, logits_BC in outputs.profiles.items():
        found = profile_losses(logits_BC, targets, name, spec.distillation)
        sums |= {(name, term): value for term, value in found.items()}
    for name, retrieval in outputs.retrieval.items():
        sums[name, "hard"] = sampled_softmax(retrieval)
    sums |= {(name, "match"): gap(found) for name, found in outputs.matched.items()}
    return Terms(sums, label_counts(targets, schema, spec))


def label_counts(targets: Targets, schema: DatasetSchema, spec: ObjectiveSpec) -> dict[str, Tensor]:
    """Labels (hard or soft) by task, float32 scalars in schema order; known before any forward pass.

    The unseen items of a target count as one, the best candidates of a request not at all. Behind the tasks come
    matching terms and their numbers of vectors.
    """
    counts: dict[str, Tensor] = {}
    for task in schema.tasks:
        if isinstance(task, MulticlassTask):
            found = targets.profile_B[task.name] >= 0
            if (taught_B := _taught_profiles(targets, task.name, spec.distillation)) is not None:
                found = found | taught_B
        elif isinstance(task, RetrievalTask):
            found = targets.labels_BQ[task.positive] == 1.0
        else:
            found = ~torch.isnan(targets.labels_BQ[task.name])
            if spec.distillation and task.name in targets.soft_BQ:
                taught_BQ = ~torch.isnan(targets.soft_BQ[task.name])
                found = (found | taught_BQ) * targets.share_BQ
            if targets.best_BQ is not None:
                found = found * ~targets.best_BQ
        counts[task.name] = found.sum().float()
    asked = {ITEMS: targets.asked_BQ, USER: targets.asked_BQ & ~targets.unseen_BQ}
    if targets.best_BQ is not None:
        asked[USER] = asked[USER] & ~targets.best_BQ
    return counts | {name: asked[name].sum().float() for name in matching_weights(spec)}


def event_losses(
    outputs: tuple[Tensor, Tensor | None], targets: Targets, task: EventTask, spec: ObjectiveSpec
) -> dict[str, Tensor]:
    """Mixed sums by term, of logits and, if there are any, auxiliary logits (B, Q).

    A target with both labels weighs (1 - mix, mix), one without a soft label (1, 0); the unseen items of a target weigh
    (0, unseen) together. Where auxiliary logits learn the soft labels, the hard ones always weigh 1.
    """
    logits_BQ, auxiliary_BQ = outputs
    label_BQ = targets.labels_BQ[task.name]
    known_BQ = ~torch.isnan(label_BQ)
    weight_BQ = torch.ones_like(label_BQ)
    sums: dict[str, Tensor] = {}
    if spec.distillation and task.name in targets.soft_BQ:
        taught_BQ = ~torch.isnan(targets.soft_BQ[task.name])
        if auxiliary_BQ is None:
            weight_BQ = torch.where(taught_BQ, 1.0 - spec.distillation.mix, weight_BQ)
        heard_BQ = logits_BQ if auxiliary_BQ is None else auxiliary_BQ
        sums = _soft_sums(heard_BQ, targets, task, (spec, spec.distillation))
    values = hard_loss(logits_BQ[known_BQ], label_BQ[known_BQ], task, spec)
    return {"hard": (weight_BQ[known_BQ] * values).sum(), **sums}


def _soft_sums(
    logits_BQ: Tensor, targets: Targets, task: EventTask, specs: tuple[ObjectiveSpec, DistillationSpec]
) -> dict[str, Tensor]:
    """What the teacher's labels add, by term."""
    spec, distillation = specs
    soft_BQ = targets.soft_BQ[task.name]
    taught_BQ = ~torch.isnan(soft_BQ)
    said, soft = logits_BQ[taught_BQ], soft_BQ[taught_BQ]
    trust = teacher_trust(soft, _spread(targets, task, taught_BQ), task, distillation)
    share_BQ = torch.where(targets.unseen_BQ, distillation.unseen, distillation.mix) * targets.share_BQ
    if targets.best_BQ is not None:
        share_BQ = torch.where(targets.best_BQ, distillation.best * targets.share_BQ, share_BQ)
    sums = {"soft": (share_BQ[taught_BQ] * trust * soft_loss(said, soft, task, spec)).sum()}
    if not distillation.lists:
        return sums
    user_BQ = torch.arange(len(soft_BQ), device=soft_BQ.device).unsqueeze(1) << 32
    list_X = (user_BQ + targets.request_BQ)[taught_BQ]
    lists = Lists.of(said, soft, trust, list_X)
    if distillation.margin:
        scale = spec.regression_scale if isinstance(task, RegressionTask) else 1.0
        sums["margin"] = distillation.margin.weight * scale * margins(lists)
    lists, tau = Lists.of(as_logits(said, task), as_logits(soft, task), trust, list_X), distillation.temperature
    if distillation.listwise:
        sums["listwise"] = distillation.listwise.weight * listwise(lists, distillation.listwise, tau)
    if distillation.relaxed:
        if distillation.relaxed.among == "best":
            keep_X = _published(targets, taught_BQ, list_X)
            said, soft, trust, list_X = (x[keep_X] for x in (said, soft, trust, list_X))
            lists = Lists.of(as_logits(said, task), as_logits(soft, task), trust, list_X)
        sums["relaxed"] = distillation.relaxed.weight * relaxed(lists, distillation.relaxed.top, tau)
    return sums


def _published(targets: Targets, taught_BQ: Tensor, list_X: Tensor) -> Tensor:
    """bool (X,): the best candidates and the sampled items of requests that have any of the first, each item once."""
    if targets.best_BQ is None or not len(list_X):
        return torch.zeros_like(list_X, dtype=torch.bool)
    best_X, item_X = targets.best_BQ[taught_BQ], targets.queries.item_BQ[taught_BQ]
    _, number_X = torch.unique(list_X, return_inverse=True)
    has_X = torch.isin(number_X, number_X[best_X])
    stays_X = (best_X | targets.unseen_BQ[taught_BQ]) & has_X
    once_X = _first_of_each(torch.where(stays_X, number_X * (item_X.max() + 1) + item_X, -1 - number_X))
    return stays_X & once_X


def _first_of_each(key_X: Tensor) -> Tensor:
    """bool (X,): the first of the places with the same key."""
    _, inverse_X, count = torch.unique(key_X, return_inverse=True, return_counts=True)
    place_X = torch.arange(len(key_X), device=key_X.device)
    first = place_X.new_full((len(count),), len(key_X)).scatter_reduce(0, inverse_X, place_X, "amin")
    return first[inverse_X] == place_X


def profile_losses(logits_BC: Tensor, targets: Targets, name: str, spec: DistillationSpec | None) -> dict[str, Tensor]:
    """Mixed sums by term: a user with both labels weighs (1 - profiles, profiles), one without a soft label (1, 0)."""
    label_B = targets.profile_B[name]
    taught_B = _taught_profiles(targets, name, spec)
    if spec is None or taught_B is None:
        return {"hard": functional.cross_entropy(logits_BC, label_B, ignore_index=-1, reduction="sum")}
    hard_B = functional.cross_entropy(logits_BC, label_B, ignore_index=-1, reduction="none")
    tau, soft_XC = spec.temperature, targets.profile_soft_BC[name][taught_B]
    soft_X = functional.cross_entropy(logits_BC[taught_B] / tau, (soft_XC / tau).softmax(1), reduction="none")
    trust = confidence(soft_XC.log_softmax(1), spec.confidence)
    hard = (torch.where(taught_B, 1.0 - spec.profiles, 1.0) * hard_B).sum()
    return {"hard": hard, "soft": spec.profiles * tau**2 * (trust * soft_X).sum()}


def _taught_profiles(targets: Targets, name: str, spec: DistillationSpec | None) -> Tensor | None:
    """bool (B,): users of whose profile the teacher has told; None when that does not count."""
    if spec is None or spec.profiles == 0 or name not in targets.profile_soft_BC:
        return None
    return ~targets.profile_soft_BC[name].isnan().any(1)


def teacher_trust(soft: Tensor, spread: Tensor | None, task: EventTask, spec: DistillationSpec) -> Tensor:
    """Weight of each soft label, 0..1: by the teacher's confidence, and by how far several teachers agree.

    ``spread``: standard deviation of the teachers' outputs; None: one teacher.
    """
    trust = torch.ones_like(soft)
    if spec.confidence and isinstance(task, BinaryTask):
        trust = confidence(torch.stack([functional.logsigmoid(soft), functional.logsigmoid(-soft)], 1), spec.confidence)
    if spec.agreement and spread is not None:
        apart = spread * (LOGITS if isinstance(task, RegressionTask) else 1.0)
        trust = trust / (1.0 + spec.agreement * apart.square())
    return trust


def confidence(log_p_XC: Tensor, power: float) -> Tensor:
    """(X,): (1 - entropy / log C) ** power of distributions over C classes."""
    if power == 0:
        return torch.ones_like(log_p_XC[:, 0])
    entropy_X = -(log_p_XC.exp() * log_p_XC).sum(1)
    return (1.0 - entropy_X / math.log(log_p_XC.shape[1])).clamp_min(0.0) ** power


def _spread(targets: Targets, task: EventTask, taught_BQ: Tensor) -> Tensor | None:
    return targets.spread_BQ[task.name][taught_BQ] if task.name in targets.spread_BQ else None


def as_logits(values: Tensor, task: EventTask) -> Tensor:
    """Outputs of a task as logits: those of regression tasks are 0..1."""
    return (values - 0.5) * LOGITS if isinstance(task, RegressionTask) else values


def hard_loss(logits: Tensor, label: Tensor, task: EventTask, spec: ObjectiveSpec) -> Tensor:
    """Cross-entropy (binary) or scaled squared error (regression) of every label."""
    if isinstance(task, BinaryTask):
        return functional.binary_cross_entropy_with_logits(logits, label, reduction="none")
    return spec.regression_scale * (logits - scale(label, task)).square()


def soft_loss(logits: Tensor, soft: Tensor, task: EventTask, spec: ObjectiveSpec) -> Tensor:
    """τ² · cross-entropy at temperature τ (binary) or squared error to the teacher's output (regression)."""
    assert spec.distillation is not None
    if isinstance(task, RegressionTask):
        return spec.regression_scale * (logits - soft).square()
    tau = spec.distillation.temperature
    softened = torch.sigmoid(soft / tau)
    return tau**2 * functional.binary_cross_entropy_with_logits(logits / tau, softened, reduction="none")


def sampled_softmax(retrieval: Retrieval) -> Tensor:
    """Summed cross-entropy of each positive against its negatives, logits corrected by log q (Bengio & Senécal, 2008).

    A positive without any negative has loss zero.
    """
    positive_P = (retrieval.user_PR * retrieval.positive_PR).sum(-1) - retrieval.log_q_P
    negative_PC = retrieval.user_PR @ retrieval.negative_CR.T - retrieval.log_q_PC
    shared_PC = negative_PC.masked_fill(retrieval.hidden_PC, float("-inf"))
    logits = [positive_P.unsqueeze(1), shared_PC]
    if retrieval.mined_PMR is not None and retrieval.mined_log_q_PM is not None:
        mined_PM = (retrieval.mined_PMR @ retrieval.user_PR.unsqueeze(-1)).squeeze(-1) - retrieval.mined_log_q_PM
        logits.append(mined_PM.masked_fill(retrieval.mined_log_q_PM.isnan(), float("-inf")))
    return -(torch.cat(logits, dim=1).log_softmax(1)[:, 0]).sum()


def check_negatives(spec: ObjectiveSpec, schema: DatasetSchema) -> None:
    """Whether there is something to tell positives of a retrieval task from.

    Raises:
        ConfigError: there is not.
    """
    if spec.negatives == 0 and not spec.in_batch and schema.of_kind(RetrievalTask):
        rule = "a retrieval task needs negatives: sampled items, the other positives of its micro-batch, or both"
        raise ConfigError("objective.negatives", 0, rule, "set it to 512, or objective.in_batch to true")


def task_weights(spec: ObjectiveSpec, tasks: tuple[str, ...]) -> dict[str, float]:
    """Weight of every task: given, or uniform 1/T.

    Raises:
        ValueError: a weight for a task that the schema does not have.
    """
    unknown = set(spec.weights) - set(tasks)
    if unknown:
        raise ValueError(f"objective.weights names unknown tasks {sorted(unknown)}; tasks: {list(tasks)}")
    if not spec.weights:
        return {task: 1.0 / len(tasks) for task in tasks}
    return {task: spec.weights.get(task, 0.0) for task in tasks}


def loss_weights(spec: ObjectiveSpec, names: tuple[str, ...]) -> dict[str, float]:
    """Weights of tasks, of which matching terms are none, and of those."""
    matching = matching_weights(spec)
    return task_weights(spec, tuple(name for name in names if name not in matching)) | matching


def scale(label: Tensor, task: RegressionTask) -> Tensor:
    """Label units to 0..1."""
    return (label - task.low) / (task.high - task.low)
