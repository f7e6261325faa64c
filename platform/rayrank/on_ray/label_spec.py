"""Which teachers are asked what, as typed configs that cross into Ray, and what the labels that they made are of."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rayrank.config import Config, ConfigError, DataPath
from rayrank.schema import DatasetSchema, RetrievalTask


class Member(Config):
    """One of several teachers."""

    bundle: DataPath = Field(description="folder of its bundle")
    weight: float = Field(1.0, gt=0, description="its share of the mean logits, beside the weights of the others")
    dataset: DataPath | None = Field(
        None, description="the same log prepared with the features that this teacher reads; None: it reads ``dataset``"
    )


class Asked(Config):
    """What teachers are asked beside their logits at every target."""

    samples: int = Field(
        4, ge=0, description="items sampled from the catalogue and labelled too at each train target; 0: none"
    )
    sample_power: float = Field(
        0.5, ge=0, description="they are drawn in proportion to (training count + 1) to this power"
    )
    mined: int = Field(
        0,
        ge=0,
        description="hard negatives at each positive of a retrieval task: the teacher's best of the pool; 0: none",
    )
    pool: int = Field(256, ge=1, description="items drawn for that at each positive, as the samples are drawn")
    best: int = Field(
        0,
        ge=0,
        description="the teacher's best candidates of each request with a train target, with its logits; 0: none",
    )
    best_of: int = Field(100, ge=1, description="candidates of a request that it scores, of which they are the best")
    best_by: Literal["retrieval", "draw"] = Field(
        "retrieval",
        description="where candidates come from: the first of the whole catalogue by the teacher's retrieval head, or "
        "drawn as the samples are",
    )
    best_task: str | None = Field(
        None, description="event task of the dataset whose logits order them; null: the first"
    )
    states: bool = Field(
        False,
        description="also the user's state before each train target, float16, for objective.distillation.matching",
    )

    @model_validator(mode="after")
    def _enough_to_choose_from(self) -> Asked:
        for name, pool in (("mined", "pool"), ("best", "best_of")):
            few, many = getattr(self, name), getattr(self, pool)
            if few > many:
                raise ValueError(f"{name} ({few}) items are the best of {pool} ({many}): raise {pool}, or lower {name}")
        return self

    def named(self, schema: DatasetSchema) -> Self:
        """With the event task of the dataset that orders the best candidates, if there are any, by its name."""
        if not self.best or self.best_task:
            return self
        return self.model_copy(update={"best_task": schema.event_tasks[0].name})


class Online(Asked):
    """Teachers in the loop: they label what is read, in the training process, and no labels are kept."""

    teachers: tuple[Member, ...] = Field((), description="who is asked, read from ``dataset``; none: ``teacher`` alone")

    @model_validator(mode="after")
    def _read_here(self) -> Online:
        if any(member.dataset for member in self.teachers):
            raise ValueError("a teacher with a dataset of its own cannot be in the loop: let the label job ask it")
        return self


def check_asked(asked: Asked, schema: DatasetSchema, prefix: str = "") -> None:
    """Whether a dataset has the tasks that teachers are asked by.

    Raises:
        ConfigError: it has not.
    """
    heads = {"mined": asked.mined, "best": asked.best if asked.best_by == "retrieval" else 0}
    for name, wanted in heads.items():
        if wanted and not schema.of_kind(RetrievalTask):
            what = "hard negatives are mined" if name == "mined" else "candidates are found"
            rule = f"{what} by the teacher's retrieval head, and this dataset has no retrieval task"
            fix = "set it to 0, or add a retrieval task to the dataset"
            raise ConfigError(f"{prefix}{name}", wanted, rule, fix if name == "mined" else f"{fix}, or best_by: draw")
    known = [task.name for task in schema.event_tasks]
    if asked.best and asked.named(schema).best_task not in known:
        rule = f"best candidates are ordered by an event task of the dataset: {', '.join(known)}"
        raise ConfigError(f"{prefix}best_task", asked.best_task, rule, "use one of them")


class LabelTask(Asked):
    """What is to be labelled, by whom, into where."""

    dataset: str = Field(description="folder of the prepared dataset")
    teachers: tuple[Member, ...] = Field(description="who is asked; their logits are averaged")
    output: str = Field(description="folder of the labels")
    actors: int = Field(description="processes, each with all teachers; 0: in this process")
    threads: int = Field(1, description="torch threads of each")
    groups_per_task: int = Field(4, description="row groups scored per call")
    stall_s: float = Field(1800.0, description="longest wait for the next labels, s")


class TeacherKey(Config):
    """One of several teachers, by what it is and what it reads."""

    bundle_id: str = Field(description="the teacher")
    weight: float = Field(description="its weight")
    data_fingerprint: str = Field(description="the shards that it read")


class LabelKey(Config):
    """What labels are of; other labels in the same folder are replaced."""

    format: int = Field(3, description="version of the layout")
    bundle_id: str = Field(description="the teacher; of several, a hash of who they are")
    ensemble: tuple[TeacherKey, ...] = Field((), description="several teachers")
    data_fingerprint: str = Field(description="the shards")
    tasks: tuple[str, ...] = Field(description="event tasks, each a soft_<task> column")
    code: str = Field(description="digest of the code that decides numbers")
    samples: int = Field(description="unseen items labelled at each train target")
    sample_power: float = Field(description="they are drawn in proportion to (training count + 1) to this power")
    mined: int = Field(0, description="hard negatives of each positive train target")
    pool: int = Field(0, description="items drawn for each such target, of which they are the hardest")
    best: int = Field(0, description="best candidates of each request with a train target")
    best_of: int = Field(0, description="candidates of which they are the best")
    best_by: str = Field("", description="where those come from; empty: there are none")
    best_task: str | None = Field(None, description="event task whose logits order them; None: there are none")
    states: int = Field(0, description="columns of the user's state before each train target; 0: it is not there")

    @property
    def teachers(self) -> frozenset[str]:
        """Ids of the bundles that made them."""
        return frozenset(one.bundle_id for one in self.ensemble) or frozenset([self.bundle_id])
