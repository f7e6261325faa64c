"""Train a multi-task ranker on top of a pretrained text encoder, frozen or fine-tuned."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import Field

from rayrank.config import DataPath
from rayrank.models.spec import RankerSpec, TeacherSpec
from rayrank.pipeline.training import TrainingConfig, TrainingResult, train_bundle
from rayrank.sources.encoders import EncoderSpec, PackageEncoder


class TrainTeacherConfig(TrainingConfig):
    """Which teacher is trained on what."""

    model: RankerSpec = Field(default_factory=TeacherSpec, description="what the teacher is made of")
    encoder: EncoderSpec | None = Field(default_factory=PackageEncoder, description="text encoder; null: no item texts")
    cache: DataPath | None = Field("runs/cache", description="folder for encoded texts, shared by runs; null: not kept")


TrainTeacherResult = TrainingResult


def train_teacher(config: TrainTeacherConfig, progress: Callable[[str], None]) -> TrainTeacherResult:
    """Train a teacher; run again, it finds what was made, or goes on after the last whole epoch."""
    return train_bundle(config, "teacher", progress)
