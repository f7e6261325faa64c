"""The typed description of one training run, as it crosses into Ray. Knows names and paths only."""

from __future__ import annotations

from pydantic import Field

from rayrank.config import Config, DataPath
from rayrank.learning.spec import LearningSpec
from rayrank.models.spec import RankerSpec, StudentSpec
from rayrank.objectives.spec import ObjectiveSpec
from rayrank.on_ray.label_spec import Member, Online
from rayrank.on_ray.stream import StreamSpec
from rayrank.sources.encoders import EncoderSpec


class FitTask(Config):
    """What is trained on what, and where it goes."""

    dataset: DataPath = Field(description="folder of the prepared dataset")
    output: DataPath | None = Field(None, description="folder of the bundle that is made; None: no bundle (a trial)")
    model: RankerSpec = Field(default_factory=StudentSpec, description="what the ranker is made of")
    encoder: EncoderSpec | None = Field(None, description="text encoder; None: no item texts, or a teacher's vectors")
    labels: DataPath | None = Field(None, description="folder of teacher labels of the same dataset")
    online: Online | None = Field(None, description="instead of labels: teachers that are asked while training")
    teacher: DataPath | None = Field(None, description="teacher bundle whose text vectors become the item table")
    cold_encoder: DataPath | None = Field(
        None,
        description="the teacher's bundle, or one compressed from it: its text encoder goes with the student, for "
        "items unseen at distillation; None: they have no text until a teacher has read it",
    )
    objective: ObjectiveSpec = Field(default_factory=ObjectiveSpec, description="what is minimised")
    learning: LearningSpec = Field(default_factory=LearningSpec, description="how it is learned")
    stream: StreamSpec = Field(default_factory=StreamSpec, description="how shards are read")
    cache: DataPath | None = Field(
        None, description="folder for encoded texts, shared by runs; None or a URL: not kept"
    )
    threads: int = Field(1, ge=1, description="torch threads of each process")
    checkpoint_s: float = Field(60.0, gt=0, description="seconds between checkpoints within an epoch")
    audit: DataPath | None = Field(
        None, description="local folder for the row numbers behind every optimiser step; None: not kept"
    )

    @property
    def asked(self) -> tuple[Member, ...]:
        """Teachers in the loop."""
        if self.online is None:
            return ()
        return self.online.teachers or ((Member(bundle=self.teacher),) if self.teacher else ())


PLACES = ("stream", "cache", "threads", "checkpoint_s", "audit")
"""Fields of a task that say where and how it runs, not what it computes."""
