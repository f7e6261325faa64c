"""Loss sums of every task, from outputs and targets. Missing labels are NaN and give exactly zero gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from rayrank.config import ConfigError
from rayrank.objectives.spec import ObjectiveSpec
from rayrank.objectives.targets import Targets
from rayrank.schema import BinaryTask, DatasetSchema, EventTask, MulticlassTask, RegressionTask, RetrievalTask

Key = tuple[str, str]
"""(task, term); terms are ``hard`` and ``soft``."""


@dataclass(frozen=True)
class Outputs:
    """What a model said about targets."""

    logits_BQ: Mapping[str, Tensor]  # event task -> (B, Q)
    profiles: Mapping[str, Tensor] = field(default_factory=dict)  # multiclass task -> (B, classes)
    retrieval: Mapping[str, Retrieval] = field(default_factory=dict)  # retrieval task -> queries and items


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
        weights = task_weights(spec, tuple(counts))
        return torch.stack([weights[t] * value / counts[t].clamp_min(1) for (t, _), value in self.sums.items()]).sum()


def compute(outputs: Outputs, targets: Targets, schema: DatasetSchema, spec: ObjectiveSpec) -> Terms:
    """Loss sums of everything the outputs hold."""
    sums: dict[Key, Tensor] = {}
    for task in schema.event_tasks:
        if task.name in outputs.logits_BQ:
            hard, soft = event_losses(outputs.logits_BQ[task.name], targets, task, spec)
            sums[task.name, "hard"] = hard
            if soft is not None:
                sums[task.name, "soft"] = soft
    for name, logits_BC in outputs.profiles.items():
        label_B = targets.profile_B[name]
        sums[name, "hard"] = functional.cross_entropy(logits_BC, label_B, ignore_index=-1, reduction="sum")
    for name, retrieval in outputs.retrieval.items():
        sums[name, "hard"] = sampled_softmax(retrieval)
    return Terms(sums, label_counts(targets, schema, spec))


def label_counts(targets: Targets, schema: DatasetSchema, spec: ObjectiveSpec) -> dict[str, Tensor]:
    """Labels (hard or soft) by task, float32 scalars in schema order; known before any forward pass."""
    counts: dict[str, Tensor] = {}
    for task in schema.tasks:
        if isinstance(task, MulticlassTask):
            found = targets.profile_B[task.name] >= 0
        elif isinstance(task, RetrievalTask):
            found = targets.labels_BQ[task.positive] == 1.0
        else:
            found = ~torch.isnan(targets.labels_BQ[task.name])
            if spec.distillation and task.name in targets.soft_BQ:
                found = found | ~torch.isnan(targets.soft_BQ[task.name])
        counts[task.name] = found.sum().float()
    return counts


def event_losses(
    logits_BQ: Tensor, targets: Targets, task: EventTask, spec: ObjectiveSpec
) -> tuple[Tensor, Tensor | None]:
    """Mixed (hard, soft) sums.

    A target with both labels weighs (1 - mix, mix), one without a soft label (1, 0), an unseen item (0, unseen).
    """
    label_BQ = targets.labels_BQ[task.name]
    known_BQ = ~torch.isnan(label_BQ)
    weight_BQ = torch.ones_like(label_BQ)
    soft = None
    if spec.distillation and task.name in targets.soft_BQ:
        soft_BQ = targets.soft_BQ[task.name]
        taught_BQ = ~torch.isnan(soft_BQ)
        weight_BQ = torch.where(taught_BQ, 1.0 - spec.distillation.mix, weight_BQ)
        said_BQ = torch.where(targets.unseen_BQ, spec.distillation.unseen, spec.distillation.mix)
        values = soft_loss(logits_BQ[taught_BQ], soft_BQ[taught_BQ], task, spec)
        soft = (said_BQ[taught_BQ] * values).sum()
    values = hard_loss(logits_BQ[known_BQ], label_BQ[known_BQ], task, spec)
    return (weight_BQ[known_BQ] * values).sum(), soft


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


def scale(label: Tensor, task: RegressionTask) -> Tensor:
    """Label units to 0..1."""
    return (label - task.low) / (task.high - task.low)
