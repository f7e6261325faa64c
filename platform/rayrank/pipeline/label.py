"""Let the teacher label every target once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pydantic import Field, model_validator

from rayrank.bundle import load_bundle, read_info
from rayrank.config import ConfigError, DataPath
from rayrank.learning.code import code_digest
from rayrank.on_ray.cluster import ClusterConfig, check_capacity, ensure_cluster
from rayrank.on_ray.items import bundle_id
from rayrank.on_ray.label import Labelled, label_shards, labels_exist
from rayrank.on_ray.label_spec import Asked, LabelKey, LabelTask, Member, TeacherKey, check_asked
from rayrank.on_ray.teachers import states_width
from rayrank.sources.dataset import Dataset
from rayrank.sources.manifest import Manifest, read_manifest
from rayrank.wording import counted


class LabelConfig(Asked):
    """Which teachers label which dataset."""

    dataset: DataPath = Field(description="folder of the prepared dataset")
    teacher: DataPath | None = Field(None, description="folder of the teacher's bundle")
    teachers: tuple[Member, ...] = Field(
        (), description="instead of ``teacher``: several, each with a weight; their logits are averaged"
    )
    output: DataPath = Field(description="folder of the labels; those of another teacher or dataset are replaced")
    actors: int = Field(2, ge=0, description="teacher processes, one logical CPU each; 0: this process, without Ray")
    threads: int = Field(1, ge=1, description="torch threads of each")
    groups_per_task: int = Field(4, ge=1, description="row groups that one call scores")
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="which Ray they run on")

    @model_validator(mode="after")
    def _somebody_to_ask(self) -> LabelConfig:
        if bool(self.teacher) == bool(self.teachers):
            raise ValueError("give one teacher (teacher: folder) or several (teachers: [{bundle: folder}, …])")
        bundles = [member.bundle for member in self.teachers]
        if len(set(bundles)) < len(bundles):
            raise ValueError("teachers names a bundle twice: give it one weight instead")
        return self

    @property
    def members(self) -> tuple[Member, ...]:
        """All teachers."""
        return (Member(bundle=self.teacher),) if self.teacher else self.teachers


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
            best candidates ordered by a task that no teacher has, more actors than there is room for.
    """
    began = time.monotonic()
    manifest = read_manifest(config.dataset)
    for number, member in enumerate(config.members):
        _check_member(member, (config.dataset, manifest), "teacher" if config.teacher else f"teachers.{number}")
    check_asked(config, manifest.dataset_schema)
    config = config.named(manifest.dataset_schema)
    _check_order(config)
    key = _key(config, manifest)
    named = {name: getattr(config, name) for name in LabelTask.model_fields if name not in ("teachers", "stall_s")}
    task = LabelTask(**named, teachers=config.members, stall_s=config.cluster.stall_s)
    if labels_exist(config.output, key):
        done = label_shards(task, key, progress)
    elif config.actors == 0:
        _verify(config.members)
        done = label_shards(task, key, progress)
    else:
        with ThreadPoolExecutor(1) as helper:  # Ray starts meanwhile
            verified = helper.submit(_verify, config.members)
            with ensure_cluster(config.cluster) as cluster:
                check_capacity(cluster, config.actors, "actors")
                verified.result()
                done = label_shards(task, key, progress)
    return _result(done, key, time.monotonic() - began)


def _check_order(config: LabelConfig) -> None:
    """Whether any teacher has the task that orders the best candidates: those with datasets of their own may not."""
    known = {task.name for member in config.members for task in read_info(member.bundle).data_schema.event_tasks}
    if config.best and config.best_task not in known:
        rule = f"best candidates are ordered by an event task that a teacher has: {', '.join(sorted(known))}"
        raise ConfigError("best_task", config.best_task, rule, "use one of them, or ask a teacher that has it")


def _verify(members: Sequence[Member]) -> None:
    """Once, here: the teacher processes trust the bundles."""
    for member in members:
        load_bundle(member.bundle)


def _key(config: LabelConfig, manifest: Manifest) -> LabelKey:
    ensemble = tuple(
        TeacherKey(
            bundle_id=bundle_id(member.bundle),
            weight=member.weight,
            data_fingerprint=(read_manifest(member.dataset) if member.dataset else manifest).data_fingerprint,
        )
        for member in config.members
    )
    alone = len(ensemble) == 1 and config.members[0].dataset is None
    return LabelKey(
        bundle_id=ensemble[0].bundle_id if alone else _joint_id(ensemble),
        ensemble=() if alone else ensemble,
        data_fingerprint=manifest.data_fingerprint,
        tasks=tuple(task.name for task in manifest.dataset_schema.event_tasks),
        code=code_digest(),
        samples=config.samples,
        sample_power=config.sample_power,
        mined=config.mined,
        pool=config.pool if config.mined else 0,
        best=config.best,
        best_of=config.best_of if config.best else 0,
        best_by=config.best_by if config.best else "",
        best_task=config.best_task if config.best else None,
        states=states_width([member.bundle for member in config.members]) if config.states else 0,
    )


def _joint_id(ensemble: Sequence[TeacherKey]) -> str:
    return hashlib.sha256("\n".join(one.model_dump_json() for one in ensemble).encode()).hexdigest()[:16]


def _check_member(member: Member, main: tuple[str, Manifest], where: str) -> None:
    """Whether a teacher can read its dataset, and whether that one holds the same sequences and tasks."""
    info, own = read_info(member.bundle), main[1]
    if member.dataset:
        own = read_manifest(member.dataset)
        _check_same((member.dataset, own), main, f"{where}.dataset")
    if info.schema_fingerprint != own.fingerprint:
        rule = f"the teacher's schema must be that of the dataset ({own.fingerprint[:16]})"
        fix = "train a teacher on this dataset, or name the one that it reads in teachers: [{bundle: …, dataset: …}]"
        raise ConfigError(where, info.schema_fingerprint[:16], rule, fix)


def _check_same(there: tuple[str, Manifest], main: tuple[str, Manifest], where: str) -> None:
    """Events themselves are compared when they are read."""
    (folder, own), (_, manifest) = there, main
    ours, theirs = (
        [[(g.sequences, g.events, g.train) for g in shard.row_groups] for shard in found.shards]
        for found in (manifest, own)
    )
    items = [Dataset(path, found).catalogue_table().column("item_id") for path, found in ((folder, own), main)]
    if ours != theirs or not items[0].equals(items[1]):
        rule, fix = "must hold the same items and sequences, in the same row groups", "prepare the same log and split"
        raise ConfigError(where, folder, rule, fix)
    known = {task.name: task for task in own.dataset_schema.event_tasks}
    for task in manifest.dataset_schema.event_tasks:
        if known.setdefault(task.name, task) != task:
            rule = "a task of both datasets must be the same in both"
            raise ConfigError(where, task.name, rule, "rename one of them")


def _result(done: Labelled, key: LabelKey, seconds: float) -> LabelResult:
    return LabelResult(done.path, key.bundle_id, done.shards, done.reused, done.targets, seconds)
