"""The configs of all jobs of a quickstart, derived from one small config and written beside the results."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from pydantic import Field

from rayrank.config import Config, ConfigError, DataPath, replace, to_yaml
from rayrank.learning.spec import LearningSpec
from rayrank.models.spec import StudentSpec, TeacherSpec
from rayrank.objectives.spec import DistillationSpec, ObjectiveSpec
from rayrank.on_ray.cluster import ClusterConfig
from rayrank.on_ray.http import HttpConfig
from rayrank.on_ray.train import Workers
from rayrank.pipeline.distill import DistillConfig
from rayrank.pipeline.evaluate import EvaluateConfig
from rayrank.pipeline.gates import GatesConfig
from rayrank.pipeline.label import LabelConfig
from rayrank.pipeline.prepare import PrepareConfig
from rayrank.pipeline.promote import PromoteConfig
from rayrank.pipeline.score import ScoreConfig
from rayrank.pipeline.serve import ServeConfig
from rayrank.pipeline.train_teacher import TrainTeacherConfig
from rayrank.pipeline.tune import TuneConfig
from rayrank.sources import storage
from rayrank.sources.config import SourceConfig
from rayrank.sources.encoders import EncoderSpec, PackageEncoder
from rayrank.sources.synthetic import SyntheticConfig
from rayrank.tracking import MlflowTracking, TrackingConfig

_FOLDERS = ("dataset", "cache", "teacher", "labels", "tune", "student", "evaluation", "releases", "scores")


class QuickstartConfig(Config):
    """One run of the whole path. The defaults make a small synthetic dataset."""

    source: SourceConfig = Field(default_factory=SyntheticConfig, description="where the raw data comes from")
    data: DataPath | None = Field(None, description="folder of the raw files; replaces source.path")
    output: DataPath = Field("runs/quickstart", description="folder of everything that is made")
    encoder: EncoderSpec = Field(default_factory=PackageEncoder, description="text encoder of the teacher")
    teacher: TeacherSpec = Field(default_factory=TeacherSpec, description="what the teacher is made of")
    teacher_learning: LearningSpec = Field(default_factory=LearningSpec, description="how the teacher learns")
    student: StudentSpec = Field(default_factory=StudentSpec, description="what the student is made of")
    student_learning: LearningSpec = Field(default_factory=LearningSpec, description="how the student learns")
    objective: ObjectiveSpec = Field(default_factory=ObjectiveSpec, description="weights of the tasks")
    workers: int = Field(2, ge=0, description="Ray Train workers of the teacher (DDP)")
    student_workers: int = Field(
        0, ge=0, description="Ray Train workers of the student; 0: this process, which is faster on small data"
    )
    trials: int = Field(4, ge=1, description="Ray Tune trials over task weights and distillation temperature")
    trial_epochs: int = Field(1, ge=1, description="epochs of a trial, in each of the two stages at most")
    fusion: dict[str, float] = Field({}, description="event task -> weight of the fused score; empty: the judged task")
    gates: GatesConfig = Field(default_factory=GatesConfig, description="what promotion asks for")
    requests: int = Field(30, ge=5, description="timed requests of each kind")
    http: HttpConfig = Field(default_factory=HttpConfig, description="where the graph listens meanwhile")
    now: int | None = Field(None, description="unix seconds taken for the present when serving; None: the clock")
    tracking: TrackingConfig | None = Field(None, description="where runs are recorded; None: mlflow.db in the output")
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="which Ray all of it runs on")


@dataclass(frozen=True)
class Plan:
    """The configs of the jobs, in order."""

    prepare: PrepareConfig
    train_teacher: TrainTeacherConfig
    label: LabelConfig
    tune: TuneConfig
    distill: DistillConfig
    evaluate: EvaluateConfig
    promote: PromoteConfig
    serve: ServeConfig
    score: ScoreConfig


def plan(config: QuickstartConfig) -> Plan:
    """The configs of all jobs, with paths below ``config.output``."""
    place = {name: storage.join(config.output, name) for name in _FOLDERS}
    tracking = config.tracking or MlflowTracking(uri=f"sqlite:///{storage.join(config.output, 'mlflow.db')}")
    shared: dict[str, Any] = {"cluster": config.cluster}
    recorded = shared | {"tracking": tracking}
    distilling = DistillConfig(
        dataset=place["dataset"],
        output=place["student"],
        labels=place["labels"],
        teacher=place["teacher"],
        model=config.student,
        objective=config.objective.model_copy(update={"distillation": DistillationSpec()}),
        learning=config.student_learning,
        workers=Workers(count=config.student_workers),
        **recorded,
    )
    bundles: dict[str, Any] = {name: place[name] for name in ("dataset", "teacher", "student")}
    return Plan(
        prepare=PrepareConfig(source=_source(config), path=place["dataset"], **shared),
        train_teacher=TrainTeacherConfig(
            dataset=place["dataset"],
            output=place["teacher"],
            model=config.teacher,
            encoder=config.encoder,
            objective=config.objective,
            learning=config.teacher_learning,
            workers=Workers(count=config.workers),
            cache=place["cache"],
            **recorded,
        ),
        label=LabelConfig(dataset=place["dataset"], teacher=place["teacher"], output=place["labels"], **shared),
        tune=TuneConfig(
            distill=_shorter(distilling, config.trial_epochs),
            output=place["tune"],
            trials=config.trials,
            **recorded,
        ),
        distill=distilling,
        evaluate=EvaluateConfig(
            **bundles,
            output=place["evaluation"],
            cost_candidates=config.gates.candidates,  # as the gates ask: promotion looks at the same timings
            cost_requests=config.gates.requests,
            tracking=tracking,
        ),
        promote=PromoteConfig(
            **bundles, releases=place["releases"], fusion=config.fusion, gates=config.gates, tracking=tracking
        ),
        serve=ServeConfig(releases=place["releases"], http=config.http, now=config.now, example_users=20, **shared),
        score=ScoreConfig(releases=place["releases"], output=place["scores"], now=config.now, **shared),
    )


def _shorter(distilling: DistillConfig, epochs: int) -> DistillConfig:
    """A trial: it needs no more than to rank settings, in a process of its own."""
    stages = {"learning.epochs": epochs, "learning.rows.epochs": min(epochs, distilling.learning.rows.epochs)}
    stages["workers.count"] = 0
    return replace(distilling, stages)


def write_plan(output: str, jobs: Plan) -> None:
    """``<output>/jobs/NAME.yaml`` for every job, so that each can be run again by itself."""
    for each in fields(jobs):
        write_job(output, each.name, getattr(jobs, each.name))


def write_job(output: str, name: str, config: Config) -> None:
    """``<output>/jobs/NAME.yaml``."""
    text = f"# rayrank {name} {name}.yaml\n{to_yaml(config)}"
    storage.write_bytes(storage.join(output, "jobs", f"{name}.yaml"), text.encode())


def _source(config: QuickstartConfig) -> SourceConfig:
    if config.data is None:
        return config.source
    if "path" not in type(config.source).model_fields:
        rule = f"a source of kind '{config.source.kind}' reads no files"
        raise ConfigError("data", config.data, rule, "leave data out, or choose source.kind movielens")
    return config.source.model_copy(update={"path": config.data})
