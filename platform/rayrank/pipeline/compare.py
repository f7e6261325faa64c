"""The ``compare`` job: two or more bundles on the same rows; intervals, corrected p-values, slices, speed, size."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from pydantic import Field, model_validator

from rayrank.bundle import load_bundle
from rayrank.config import Config, ConfigError, DataPath
from rayrank.metrics.paired import resamples_for
from rayrank.pipeline import charts, compare_report, comparison_charts, tabulate
from rayrank.pipeline.comparison import Asked, Comparison, Part, Progress, Protocol, compared
from rayrank.pipeline.cost import bundle_mb, measure_costs, weights_mb
from rayrank.pipeline.differences import Difference, count_tests, metric_differences, slice_differences
from rayrank.pipeline.evaluate import lineage
from rayrank.pipeline.score_files import ScoreFiles
from rayrank.pipeline.slices import SlicesConfig, Slicing
from rayrank.pipeline.surroundings import Surroundings
from rayrank.schema import PARTS, DatasetSchema
from rayrank.sources import storage
from rayrank.sources.dataset import Dataset
from rayrank.tracking import MlflowTracking, NullTracker, TrackingConfig, check_tracking, open_tracker


class CompareConfig(Config):
    """What to compare, on what, and where the results go."""

    dataset: DataPath = Field(description="dataset folder, written by prepare; all bundles were trained on it")
    bundles: dict[str, DataPath] = Field(
        description="name -> bundle folder: teachers, students, compressed", min_length=2
    )
    reference: str | None = Field(None, description="name of the bundle that others are set against; None: the first")
    part: Part = Field("test", description="which targets: test for reports, valid for choosing")
    protocols: tuple[Protocol, ...] = Field(
        ("snapshot", "streaming"), min_length=1, description="what history a target sees; slices are of the last one"
    )
    task: str | None = Field(None, description="binary task of the short table and plots; None: that of retrieval")
    slices: SlicesConfig = Field(default_factory=SlicesConfig, description="how targets are cut into slices")
    resamples: int | None = Field(
        None, ge=100, description="bootstrap resamples over users; None: as many as the correction needs"
    )
    level: float = Field(0.05, gt=0, lt=0.5, description="corrected p-values below this count as shown")
    cost_requests: int = Field(40, ge=5, description="timed requests, answered by all bundles in turn on one thread")
    cost_candidates: int = Field(500, ge=1, description="candidates of a timed request")
    seed: int = Field(0, description="of the bootstrap")
    output: DataPath = Field(description="folder for compare.json, compare.md, plots and scores")
    tracking: TrackingConfig = Field(default_factory=MlflowTracking, description="where the run is recorded")

    @model_validator(mode="after")
    def _names(self) -> CompareConfig:
        for name in self.bundles:
            if not name or not all(c.isalnum() or c in " _-+" for c in name):
                raise ValueError(f"bundles: '{name}': names are letters, digits, blanks, '_', '-' and '+'")
        if self.reference is not None and self.reference not in self.bundles:
            raise ValueError(f"reference: '{self.reference}' is none of: {', '.join(self.bundles)}")
        return self

    @property
    def base(self) -> str:
        """Name of the reference."""
        return self.reference or next(iter(self.bundles))


@dataclass(frozen=True)
class Size:
    """What a bundle takes on disk."""

    weights_mb: float
    bundle_mb: float


@dataclass(frozen=True)
class CompareResult:
    """The comparison, what differs from the reference, and sizes by model."""

    comparison: Comparison
    reference: str
    level: float
    differences: tuple[Difference, ...]
    by_slice: tuple[Difference, ...]
    sizes: dict[str, Size]
    surroundings: Surroundings
    output: str
    run_id: str | None = None

    @property
    def protocol(self) -> str:
        """The one that slices and plots are of."""
        return self.comparison.entries[-1].protocol

    def summary(self) -> list[str]:
        """The tables, where the files are, and a sentence per model."""
        return [*compare_report.as_text(self), f"results: {self.output}", *compare_report.verdicts(self)]


def compare(config: CompareConfig, progress: Progress) -> CompareResult:
    """Score all bundles, time them in turn, and write the results; safe to run again (files are replaced).

    Raises:
        ConfigError: no dataset or bundle at a path, or they do not belong together.
    """
    check_tracking(config.tracking)
    dataset = Dataset.open(config.dataset)
    storage.remove(storage.join(config.output, "compare.json"))  # it comes last: without it results are not whole
    with ThreadPoolExecutor(1) as helper:  # opening the store imports for seconds
        opening = helper.submit(open_tracker, config.tracking)
        found, sizes = _measured(config, dataset, progress)
        tracker = opening.result()
    result = CompareResult(
        found,
        config.base,
        config.level,
        metric_differences(found, config.base),
        slice_differences(found, config.base, found.entries[-1].protocol),
        sizes,
        Surroundings.now(),
        config.output,
    )
    for name, figure in _plots(result).items():
        storage.write_bytes(storage.join(config.output, f"{name}.png"), charts.to_png(figure))
    compare_report.write(result)
    return replace(result, run_id=_track(config, result, tracker))


def _measured(config: CompareConfig, dataset: Dataset, progress: Progress) -> tuple[Comparison, dict[str, Size]]:
    if getattr(dataset.manifest.counts, config.part) == 0:
        raise ConfigError("part", config.part, "the dataset has no targets in this part", "choose the other part")
    progress(f"cutting {config.part} into slices")
    slicing = Slicing.of(dataset, PARTS[config.part], config.slices)
    files = ScoreFiles(storage.join(config.output, "scores"))
    found = compared(dataset, _asked(config, slicing, resamples_of(config, dataset.schema)), progress, files)
    _same_rows(found)
    progress("timing all bundles in turn")
    bundles = {name: load_bundle(path) for name, path in config.bundles.items()}
    costs = measure_costs(list(bundles.values()), dataset, config.cost_candidates, config.cost_requests)
    by_name = dict(zip(bundles, costs, strict=True))
    timed = tuple(replace(entry, cost=by_name[entry.model]) for entry in found.entries)
    sizes = {name: Size(weights_mb(bundle), bundle_mb(bundle)) for name, bundle in bundles.items()}
    return replace(found, entries=timed), sizes


def resamples_of(config: CompareConfig, schema: DatasetSchema) -> int:
    """As many as asked for, or as the config's level needs after correction for all that is tested."""
    tests = count_tests(schema, len(config.bundles), len(config.protocols))
    return config.resamples or resamples_for(tests, config.level)


def _asked(config: CompareConfig, slicing: Slicing, resamples: int) -> Asked:
    return Asked(
        bundles=config.bundles,
        part=config.part,
        protocols=config.protocols,
        task=config.task,
        baselines=False,
        resamples=resamples,
        cost_requests=0,
        seed=config.seed,
        every=True,
        slicing=slicing,
    )


def _same_rows(found: Comparison) -> None:
    """Every row that was scored is one of the part (the slices know them); here: none is missing or told twice."""
    counts = {
        tuple(v for name, v in entry.metrics.items() if name.endswith(("/count", "/queries", "/users")))
        for entry in found.entries
    }
    if len(counts) != 1:
        raise ValueError(f"the bundles were scored on different rows: {counts}")


def _plots(result: CompareResult) -> dict[str, charts.Figure]:
    palette, found = charts.LIGHT, result.comparison
    curves = tabulate.curves(found, result.protocol)
    spots = [charts.Spot(**spot.model_dump()) for spot in tabulate.spots(found, result.protocol)]
    slices = {e.model: e.evidence.slices for e in found.entries if e.protocol == result.protocol}
    return {
        "differences": comparison_charts.differences(result.differences, result.level, palette),
        "calibration": charts.calibration(
            {n: charts.Curve(c.prediction, c.label, c.count) for n, c in curves.items()}, palette
        ),
        "slices": comparison_charts.slices(slices, found.task, palette),
        "quality_cost": charts.quality_cost(spots, {}, palette),
    }


def _track(config: CompareConfig, result: CompareResult, tracker: NullTracker) -> str | None:
    found = result.comparison
    tags = lineage(found, config.bundles) | {"reference": result.reference}
    with tracker.run(f"compare {found.schema.name}", "compare", tags=tags) as run:
        run.log_config(config)
        for entry in found.entries:
            run.log_metrics({f"{entry.model}/{entry.protocol}/{k}": v for k, v in entry.metrics.items()})
        if "://" not in config.output:
            for name in ("compare.json", "compare.md", *(f"{plot}.png" for plot in compare_report.PLOTS)):
                run.log_artifact(storage.join(config.output, name))
    return run.run_id
