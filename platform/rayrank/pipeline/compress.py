"""The ``compress`` job: a smaller bundle from a trained one, which passes the gate or is not written at all."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import Field

from rayrank.bundle import Bundle, BundleParts, Compression, load_bundle, local_folder, read_id, read_info, save_bundle
from rayrank.compression.apply import compressed
from rayrank.compression.gate import Check, checks
from rayrank.compression.spec import GateLimits, MethodSpec
from rayrank.config import Config, ConfigError, DataPath
from rayrank.learning.code import code_digest
from rayrank.pipeline.comparison import Part, Progress, check_data
from rayrank.pipeline.side_by_side import SideBySide, side_by_side
from rayrank.pipeline.surroundings import Surroundings
from rayrank.sources.dataset import Dataset
from rayrank.tracking import MlflowTracking, NullTracker, TrackingConfig, check_tracking, open_tracker
from rayrank.wording import counted


class CompressConfig(Config):
    """What is made smaller, how, and how far its scores may move."""

    bundle: DataPath = Field(description="bundle to start from")
    dataset: DataPath = Field(description="dataset folder it was trained on: what the gate looks at")
    output: DataPath = Field(description="folder of the smaller bundle")
    method: MethodSpec = Field(description="what is taken out or rounded")
    gate: GateLimits = Field(default_factory=GateLimits, description="what must be kept")
    part: Part = Field("valid", description="targets that both bundles are judged on")
    requests: int = Field(40, ge=5, description="requests that are timed and ordered by both")
    candidates: int = Field(500, ge=2, description="candidates of such a request")
    tracking: TrackingConfig = Field(default_factory=MlflowTracking, description="where the run is recorded")


@dataclass(frozen=True)
class CompressResult:
    """What was found, and the bundle if it passed."""

    passed: bool
    checks: tuple[Check, ...]
    found: SideBySide
    bundle: str
    bundle_id: str | None

    @property
    def refused(self) -> bool:
        """Whether the gate refused it; the job then exits with code 3."""
        return not self.passed

    def summary(self) -> list[str]:
        """Every number, then what became of it."""
        lines = [check.line() for check in self.checks]
        lines += [f"{n}: {a:,.1f}, was {b:,.1f} ({a / b:.2f}×)" for n, (b, a) in self.found.speeds.items()]
        if self.bundle_id is not None:
            return [*lines, f"bundle {self.bundle_id}: {self.bundle}"]
        failed = sum(not check.passed for check in self.checks)
        return [*lines, f"refused, nothing was written; {failed} of {counted(len(self.checks), 'limit')} not kept"]


def compress(config: CompressConfig, progress: Progress) -> CompressResult:
    """Make the smaller bundle, load it as serving would, measure it beside the original, and keep or refuse it.

    Raises:
        ConfigError: a bundle of other data, an output that is the bundle itself, a method that does not fit it.
    """
    check_tracking(config.tracking)
    target = local_folder(config.output)
    if target.resolve() == local_folder(config.bundle).resolve():
        raise ConfigError("output", config.output, "must not be the bundle itself", "choose another folder")
    dataset, original = Dataset.open(config.dataset), load_bundle(config.bundle)
    check_data(original, dataset, "bundle")
    if (there := _found(config, original, progress)) is not None:
        progress("found: the same bundle, made smaller by the same method within the same limits")
        return there
    if getattr(dataset.manifest.counts, config.part) == 0:
        raise ConfigError("part", config.part, "the dataset has no targets in this part", "choose the other part")
    with ThreadPoolExecutor(1) as helper, tempfile.TemporaryDirectory(prefix="rayrank-compress-") as folder:
        opening = helper.submit(open_tracker, config.tracking)
        model, parts = compressed(original, config.method, dataset, progress)
        save_bundle(Path(folder) / "bundle", model, parts)
        smaller = load_bundle(Path(folder) / "bundle")
        found = side_by_side((original, smaller), dataset, config.part, (config.requests, config.candidates), progress)
        judged = checks(found.differences, config.gate)
        passed = all(check.passed for check in judged)
        if passed:
            save_bundle(target, smaller.model, _recorded(config, parts, smaller, found))
        result = CompressResult(passed, judged, found, config.output, read_id(target) if passed else None)
        _record(config, original, result, opening.result())
    return result


def _found(config: CompressConfig, original: Bundle, progress: Progress) -> CompressResult | None:
    """What an earlier run of the same config, bundle and code wrote; None: nothing whole, or something else."""
    try:
        info = read_info(config.output)
    except ConfigError:
        return None
    about = info.compression
    if about is None or info.parents[-1].bundle_id != original.bundle_id:
        return None
    asked = _about(config, SideBySide(about.differences, about.speeds, info.metrics), about.machine)
    if asked != about:
        return None
    try:
        load_bundle(config.output)
    except ConfigError as damaged:
        progress(f"made anew: {damaged}")
        return None
    found = SideBySide(about.differences, about.speeds, info.metrics)
    judged = checks(about.differences, config.gate)
    return CompressResult(True, judged, found, config.output, read_id(config.output))


def _recorded(config: CompressConfig, parts: BundleParts, smaller: Bundle, found: SideBySide) -> BundleParts:
    """The parts with what was measured, and the vectors that are there already."""
    about = _about(config, found, Surroundings.now().line())
    return replace(parts, catalogue=smaller.catalogue(), metrics=found.metrics, compression=about)


def _about(config: CompressConfig, found: SideBySide, machine: str) -> Compression:
    return Compression(
        method=config.method.model_dump(mode="json"),
        machine=machine,
        part=config.part,
        differences=found.differences,
        limits=config.gate.by_name(),
        speeds=found.speeds,
        code=code_digest(),
        requests=config.requests,
        candidates=config.candidates,
    )


def _record(config: CompressConfig, original: Bundle, result: CompressResult, tracker: NullTracker) -> None:
    tags = {"original_id": original.bundle_id, "outcome": "kept" if result.passed else "refused"}
    if result.bundle_id is not None:
        tags |= {"bundle_id": result.bundle_id, "bundle": config.output}
    with tracker.run(f"compress {original.info.role}", "compress", tags=tags) as run:
        run.log_config(config)
        run.log_metrics(result.found.differences | result.found.metrics)
        run.log_metrics({name.replace(",", ""): after for name, (_, after) in result.found.speeds.items()})
        if result.passed:
            run.log_artifact(f"{config.output}/MODEL_CARD.md")
