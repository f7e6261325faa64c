"""How far the student's vectors, mapped to the teacher's space, point away from the teacher's.

Stands beside the tasks: it has a weight and a count of its own, and no label.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from rayrank.objectives.spec import ObjectiveSpec

ITEMS, USER = "match/items", "match/user"
"""What the terms are called among the losses; no task has a slash in its name."""


@dataclass(frozen=True)
class Matched:
    """X vectors of both, and how often each counts."""

    student_XD: Tensor
    teacher_XD: Tensor
    weight_X: Tensor


def matching_weights(spec: ObjectiveSpec) -> dict[str, float]:
    """Term -> weight, of those that are switched on."""
    told = spec.distillation
    weights = {ITEMS: told.matching.items, USER: told.matching.user} if told else {}
    return {name: weight for name, weight in weights.items() if weight}


def gap(found: Matched) -> Tensor:
    """Σ weight · (1 - cosine): vectors of any length, and a teacher's vector of zeros says nothing."""
    said_XD, taught_XD = (functional.normalize(x.float(), dim=-1) for x in (found.student_XD, found.teacher_XD))
    there_X = (taught_XD != 0).any(-1)
    return (found.weight_X * torch.where(there_X, 1.0 - (said_XD * taught_XD).sum(-1), 0.0)).sum()
