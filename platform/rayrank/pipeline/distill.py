"""Train a student on labels and cached teacher scores: the teacher's loop with another model and another objective."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import Field, model_validator

from rayrank.models.spec import RankerSpec, StudentSpec
from rayrank.objectives.spec import DistillationSpec, ObjectiveSpec
from rayrank.on_ray.train import Workers
from rayrank.pipeline.training import TrainingConfig, TrainingResult, train_bundle


class DistillConfig(TrainingConfig):
    """Which student learns from which teacher. Without labels it learns from the data alone (undistilled)."""

    model: RankerSpec = Field(default_factory=StudentSpec, description="what the student is made of")
    objective: ObjectiveSpec = Field(
        default_factory=lambda: ObjectiveSpec(distillation=DistillationSpec()),
        description="what is minimised; distillation needs labels",
    )
    workers: Workers = Field(
        default_factory=lambda: Workers(count=0), description="processes that train; small students need only this one"
    )

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> DistillConfig:
        if self.objective.distillation and not self.labels and not self.online:
            raise ValueError(
                "objective.distillation needs labels: the folder that the label job wrote (or online: {}, the teacher "
                "in the loop), or set it to null"
            )
        if self.labels and self.online:
            raise ValueError("labels and online are two ways to the same numbers: keep one of them")
        if self.online and not self.asked:
            raise ValueError("online needs somebody to ask: teacher, or online.teachers")
        return self


DistillResult = TrainingResult


def distill(config: DistillConfig, progress: Callable[[str], None]) -> DistillResult:
    """Train a student; run again, it finds what was made, or goes on after the last whole epoch."""
    return train_bundle(config, "student", progress)
