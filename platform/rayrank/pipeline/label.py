"""Let the teacher label every target once."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pydantic import Field, model_validator

from rayrank.bundle import load_bundle, read_info
from rayrank.config import Config, ConfigError, DataPath
from rayrank.learning.code import code_digest
from rayrank.on_ray.cluster import ClusterConfig, check_capacity, ensure_cluster
from rayrank.on_ray.items import bundle_id
from rayrank.on_ray.label import LabelKey, Labelled, LabelTask, label_shards, labels_exist
from rayrank.schema import RetrievalTask
from rayrank.sources.manifest import read_manifest
from rayrank.wording import counted


class LabelConfig(Config):
    """Which teacher labels which dataset."""

    dataset: DataPath = Field(description="folder of the prepared dataset")
    teacher: DataPath = Field(description="folder of the teacher's bundle")
    output: DataPath = Field(description="folder of the labels; those of another teacher or dataset are replaced")
    actors: int = Field(2, ge=0, description="teacher processes, one logical CPU each; 0: this process, without Ray")
    threads: int = Field(1, ge=1, description="torch threads of each")
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
    groups_per_task: int = Field(4, ge=1, description="row groups that one call scores")
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="which Ray they run on")

    @model_validator(mode="after")
    def _enough_to_mine_from(self) -> LabelConfig:
        if self.mined > self.pool:
            raise ValueError(
                f"mined ({self.mined}) items are the best of pool ({self.pool}): raise pool, or lower mined"
            )
        return self


@dataclass(frozen=True)
class LabelResult:
    """What was made and where."""

    labels: str
    teacher_id: str
    shards: int
    reused_shards: int
    targets: int
    seconds: float

    def summary(self) -> list[str]:
        """The lines a person wants to read."""
        made = f"{counted(self.targets, 'target')} in {counted(self.shards, 'shard')}"
        return [
            f"{made}, {self.reused_shards} of them there already ({self.seconds:.1f} s)",
            f"labels of teacher {self.teacher_id}: {self.labels}",
        ]


def label(config: LabelConfig, progress: Callable[[str], None]) -> LabelResult:
    """Write the teacher's logits for every target; only shards without labels are scored.

    Raises:
        ConfigError: no such dataset or teacher, a damaged one, another schema, hard negatives without a retrieval task,
            more actors than there is room for.
    """
    began = time.monotonic()
    manifest, info = read_manifest(config.dataset), read_info(config.teacher)
    if info.schema_fingerprint != manifest.fingerprint:
        rule = f"the teacher's schema must be that of the dataset ({manifest.fingerprint[:16]})"
        raise ConfigError("teacher", info.schema_fingerprint[:16], rule, "train a teacher on this dataset")
    if config.mined and not manifest.dataset_schema.of_kind(RetrievalTask):
        rule = "hard negatives are mined by the teacher's retrieval head, and this dataset has no retrieval task"
        raise ConfigError("mined", config.mined, rule, "set it to 0, or add a retrieval task to the dataset")
    key = LabelKey(
        bundle_id=bundle_id(config.teacher),
        data_fingerprint=manifest.data_fingerprint,
        tasks=tuple(task.name for task in manifest.dataset_schema.event_tasks),
        code=code_digest(),
        samples=config.samples,
        sample_power=config.sample_power,
        mined=config.mined,
        pool=config.pool if config.mined else 0,
    )
    named = {name: getattr(config, name) for name in LabelTask.model_fields if name != "stall_s"}
    task = LabelTask(**named, stall_s=config.cluster.stall_s)
    if labels_exist(config.output, key):
        done = label_shards(task, key, progress)
    elif config.actors == 0:
        load_bundle(config.teacher)  # verified here, once; the teacher processes trust it
        done = label_shards(task, key, progress)
    else:
        with ThreadPoolExecutor(1) as helper:  # Ray starts meanwhile
            verified = helper.submit(load_bundle, config.teacher)
            with ensure_cluster(config.cluster) as cluster:
                check_capacity(cluster, config.actors, "actors")
                verified.result()
                done = label_shards(task, key, progress)
    return _result(done, key, time.monotonic() - began)


def _result(done: Labelled, key: LabelKey, seconds: float) -> LabelResult:
    return LabelResult(done.path, key.bundle_id, done.shards, done.reused, done.targets, seconds)
