"""The ``promote`` job: teacher and student become the champion release if every gate passes; else nothing changes."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydantic import Field

from rayrank.bundle import read_id, read_info
from rayrank.config import Config, ConfigError, DataPath
from rayrank.metrics.bootstrap import Resamples
from rayrank.pipeline.comparison import Asked, Comparison, Part, Progress, compared, judged_task
from rayrank.pipeline.evaluate import lineage
from rayrank.pipeline.gates import GateResult, GatesConfig, judge
from rayrank.pipeline.tabulate import verdict
from rayrank.ranking.fusion import check_weights
from rayrank.ranking.release import CHAMPION, Release, champion, load_release, save_release, set_alias
from rayrank.sources.dataset import Dataset
from rayrank.tracking import MlflowTracking, NullTracker, TrackingConfig, check_tracking, open_tracker
from rayrank.wording import counted


class PromoteConfig(Config):
    """What to promote, on which evidence, and where releases lie."""

    dataset: DataPath = Field(description="dataset folder the bundles were trained on")
    teacher: DataPath = Field(description="bundle of the teacher: the re-ranker")
    student: DataPath = Field(description="bundle of the student: the pre-ranker")
    releases: DataPath = Field(description="folder of releases; its champion.json is what serving follows")
    release_id: str | None = Field(None, description="name of the release; None: made from its content")
    fusion: dict[str, float] = Field({}, description="event task -> weight of the fused score; empty: the judged task")
    gates: GatesConfig = Field(default_factory=GatesConfig, description="what must be shown")
    part: Part = Field("test", description="targets the gates look at: once, for models that were chosen on valid")
    task: str | None = Field(None, description="binary task to judge; None: that of retrieval, or the first")
    resamples: int = Field(500, ge=100, description="bootstrap resamples over users")
    seed: int = Field(0, description="of the bootstrap")
    model_name: str = Field("rayrank", description="name in the model registry", min_length=1)
    tracking: TrackingConfig = Field(
        default_factory=MlflowTracking, description="where the run and the registry alias are recorded"
    )


@dataclass(frozen=True)
class PromoteResult:
    """What the gates found, and the release when they all passed."""

    promoted: bool
    gates: tuple[GateResult, ...]
    verdict: str
    release: Release | None
    previous: str | None  # release id of the champion before
    path: str | None
    comparison: Comparison
    model_version: str | None = None

    @property
    def refused(self) -> bool:
        """Whether a gate failed; the job then exits with code 3."""
        return not self.promoted

    def summary(self) -> list[str]:
        """A line per gate, and what became of it."""
        width = max(len(gate.name) for gate in self.gates) if self.gates else 0
        lines = [
            f"{'passed' if g.passed else 'FAILED'}  {g.name:<{width}}  {g.found}  (asked: {g.asked})"
            for g in self.gates
        ]
        if self.release is not None:
            before = f" (before: {self.previous})" if self.previous else ""
            return [*lines, f"champion is now {self.release.release_id}{before}: {self.path}"]
        failed = [gate for gate in self.gates if not gate.passed]
        reasons = [f"  {gate.name}: {gate.explanation} Its limit: {gate.remedy}." for gate in failed]
        kept = f"the champion stays {self.previous}" if self.previous else "there is no champion"
        return [*lines, f"refused, {kept}; {len(failed)} of {counted(len(self.gates), 'gate')} failed:", *reasons]


def promote(config: PromoteConfig, progress: Progress, found: Comparison | None = None) -> PromoteResult:
    """Judge, and on success write the release, register it and move the alias; safe to run again.

    ``found`` is a comparison of these very bundles on this part that was made a moment ago, by ``evaluate``: nothing
    is scored or timed again then.

    Raises:
        ConfigError: bundles that do not belong to the dataset or to each other, unknown fusion tasks, a release_id
            that other bundles have.
    """
    check_tracking(config.tracking)
    dataset = Dataset.open(config.dataset)
    if config.fusion:
        check_weights(config.fusion, dataset.schema, "fusion")
    bundles = {"teacher": config.teacher, "student": config.student}
    for role, path in bundles.items():
        _check_role(role, path)
    _check_name(config)
    with ThreadPoolExecutor(1) as helper:  # opening the store imports for seconds
        opening = helper.submit(open_tracker, config.tracking)
        found = compared(dataset, asked(config), progress) if found is None else _checked(found, config, dataset)
        tracker = opening.result()
    return decide(config, found, tracker, progress)


def asked(config: PromoteConfig) -> Asked:
    """The comparison that the gates look at."""
    return Asked(
        {"teacher": config.teacher, "student": config.student},
        config.part,
        task=config.task,
        resamples=config.resamples,
        cost_candidates=config.gates.candidates,
        cost_requests=config.gates.requests,
        seed=config.seed,
    )


def _checked(found: Comparison, config: PromoteConfig, dataset: Dataset) -> Comparison:
    """Refuse evidence about something else: a mistake of the caller, not of the user."""
    task, data = judged_task(dataset.schema, config.task), dataset.manifest.data_fingerprint
    if (found.task, found.data_fingerprint) != (task, data):
        raise ValueError(f"the comparison judges '{found.task}' on other data, or not '{task}' of {config.dataset}")
    first = Resamples.draw(found.resamples.user, 1, config.seed).weights
    if len(found.resamples.weights) != config.resamples or not np.array_equal(found.resamples.weights[:1], first):
        raise ValueError(f"the intervals are not of {config.resamples} resamples with seed {config.seed}")
    for role, path in (("teacher", config.teacher), ("student", config.student)):
        entry = found.find(role, "snapshot")
        if entry is None or entry.bundle_id != read_id(path) or found.part != config.part:
            raise ValueError(f"the comparison is not about this {role} on {config.part}")
        timed = entry.cost and (entry.cost.candidates, len(entry.cost.seconds))
        if timed != (config.gates.candidates, config.gates.requests):
            raise ValueError(f"the {role} was timed on {timed} (candidates, requests), not as the gates ask")
    return found


def decide(config: PromoteConfig, found: Comparison, tracker: NullTracker, progress: Progress) -> PromoteResult:
    """Apply the gates to a comparison and act on the outcome."""
    results, sentence = tuple(judge(found, config.gates)), verdict(found)
    progress(f"{sum(result.passed for result in results)} of {counted(len(results), 'gate')} passed")
    before = champion(config.releases)
    previous = before.release_id if before else None
    passed = all(result.passed for result in results)
    bundles = {"teacher": config.teacher, "student": config.student}
    tags = {"outcome": "promoted" if passed else "refused", **lineage(found, bundles)}
    with tracker.run(f"promote {found.schema.name}", "promote", tags=tags) as run:
        run.log_config(config)
        run.log_metrics({f"gate/{result.key}": result.value for result in results})
        if not passed:
            return PromoteResult(False, results, sentence, None, previous, None, found)
        release = _release(config, found, results)
        path = str(save_release(config.releases, release))
        ids = {"teacher_id": release.teacher_id or "", "student_id": release.student_id or ""}
        version = tracker.register(config.model_name, str(Path(path).parent), run.run_id, ids, release.note)
        if version is not None:
            tracker.set_alias(config.model_name, CHAMPION, version)
        # Last: whatever failed above, serving still follows the old champion.
        set_alias(config.releases, release.release_id)
    return PromoteResult(True, results, sentence, release, previous, path, found, version)


def _release(config: PromoteConfig, found: Comparison, results: tuple[GateResult, ...]) -> Release:
    teacher, student = found.find("teacher", "snapshot"), found.find("student", "snapshot")
    assert teacher is not None
    assert student is not None
    fusion = config.fusion or {found.task: 1.0}
    identity = json.dumps([teacher.bundle_id, student.bundle_id, sorted(fusion.items())])
    name = config.release_id or f"{found.schema.name}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"
    folder = Path(config.releases) / name
    skipped = f"; gates skipped: {', '.join(config.gates.skip)}" if config.gates.skip else ""
    return Release(
        release_id=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        student=_place(config.student, folder),
        teacher=_place(config.teacher, folder),
        student_id=student.bundle_id,
        teacher_id=teacher.bundle_id,
        fusion=fusion,
        dataset=_place(config.dataset, folder),
        metrics={result.key: result.value for result in results},
        note=f"{verdict(found)}{skipped}",
    )


def _place(path: str, folder: Path) -> str:
    """Relative to the release when both lie below one run's folder, so that the run can be moved; else as it is."""
    run = folder.parent.parent
    if "://" in path or not Path(path).is_absolute() or not Path(path).is_relative_to(run) or run == Path("/"):
        return path
    return os.path.relpath(path, folder)


def _check_name(config: PromoteConfig) -> None:
    """A release that was saved stays what it is: it may be serving, or be what one rolls back to."""
    folder = Path(config.releases) / (config.release_id or "")
    if config.release_id is None or not (folder / "release.json").is_file():
        return
    saved = load_release(folder)
    if (saved.teacher_id, saved.student_id) != (read_id(config.teacher), read_id(config.student)):
        rule = "a release of this name holds other bundles"
        raise ConfigError("release_id", config.release_id, rule, "choose another name, or leave it out")


def _check_role(role: str, path: str) -> None:
    found = read_info(path).role
    if found != role:
        raise ConfigError(role, path, f"this bundle is a {found}", f"give a {role} bundle")
