"""The ``evaluate`` job: teacher and student beside the baselines and the champion, ending in one plain verdict."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from rayrank.bundle import read_info
from rayrank.config import Config, ConfigError, DataPath
from rayrank.pipeline import charts, tabulate
from rayrank.pipeline.comparison import Asked, Comparison, Part, Progress, Protocol, compared, named
from rayrank.pipeline.report import Report, render
from rayrank.pipeline.score_files import ScoreFiles
from rayrank.pipeline.training import tracked_run
from rayrank.ranking.release import champion
from rayrank.sources import storage
from rayrank.sources.dataset import Dataset
from rayrank.tracking import MlflowTracking, NullTracker, TrackingConfig, check_tracking, open_tracker

_TABLE_NOTE = (
    "Snapshot: the history stops before the first event of the evaluated part. Streaming: every strictly "
    "earlier request is visible with its labels, as in live serving. Best of a column in colour."
)


class EvaluateConfig(Config):
    """What to evaluate, on what, and where the results go."""

    dataset: DataPath = Field(description="dataset folder, written by prepare")
    teacher: DataPath | None = Field(None, description="bundle of a teacher")
    student: DataPath | None = Field(None, description="bundle of a student")
    releases: DataPath | None = Field(None, description="folder of releases: its champion is evaluated beside")
    part: Part = Field(
        "test", description="which targets: valid for choosing; test for reports, and once for promote's gates"
    )
    protocols: tuple[Protocol, ...] = Field(
        ("snapshot", "streaming"), min_length=1, description="what history a target sees; see docs/architecture.md"
    )
    task: str | None = Field(None, description="binary task to judge; None: that of retrieval, or the first")
    baselines: bool = Field(True, description="also fit popularity, recent popularity, item mean, user + item bias")
    resamples: int = Field(500, ge=20, description="bootstrap resamples over users, for intervals")
    cost_requests: int = Field(40, ge=5, description="timed requests per model, on one thread")
    cost_candidates: int = Field(500, ge=1, description="candidates of a timed request")
    seed: int = Field(0, description="of the bootstrap")
    output: DataPath = Field(description="folder for evaluation.json, metrics.csv, report.html, plots and scores")
    tracking: TrackingConfig = Field(default_factory=MlflowTracking, description="where the run is recorded")

    @model_validator(mode="after")
    def _something(self) -> EvaluateConfig:
        if self.teacher is None and self.student is None:
            raise ValueError("give at least one of teacher and student")
        return self


@dataclass(frozen=True)
class EvaluateResult:
    """The comparison, its table and the verdict."""

    comparison: Comparison
    columns: tuple[str, ...]
    rows: tuple[tabulate.Row, ...]
    verdict: str
    output: str
    run_id: str | None = None

    def summary(self) -> list[str]:
        """The table, where the files are, and the verdict."""
        return [*self.table_lines(), f"results: {self.output}", self.verdict]

    def table_lines(self) -> list[str]:
        """What the table is about, and the table."""
        found = self.comparison
        head = f"{found.schema.name}, {found.part}; AUC, GAUC, LogLoss, NE and NDCG@10 are of '{found.task}'"
        return [head, *tabulate.as_text(self.columns, list(self.rows)), *tabulate.about_retrieval(found)]

    @property
    def metrics(self) -> dict[str, float]:
        """``<model>/<protocol>/<task>/<metric>`` -> value."""
        return {f"{e.model}/{e.protocol}/{k}": v for e in self.comparison.entries for k, v in e.metrics.items()}


def evaluate(config: EvaluateConfig, progress: Progress) -> EvaluateResult:
    """Compare and write the results; safe to run again (files are replaced).

    Raises:
        ConfigError: no dataset or bundle at a path, or they do not belong together.
    """
    check_tracking(config.tracking)
    dataset = Dataset.open(config.dataset)
    storage.remove(storage.join(config.output, "evaluation.json"))  # it comes last: without it results are not whole
    with ThreadPoolExecutor(1) as helper:  # opening the store imports for seconds
        opening = helper.submit(open_tracker, config.tracking)
        files = ScoreFiles(storage.join(config.output, "scores"))
        found = compared(dataset, _asked(config, dataset, progress), progress, files)
        tracker = opening.result()
    sentence = tabulate.verdict(found)
    columns, rows = tabulate.table(found)
    tabulate.write_outputs(config.output, found, sentence)
    page = render(report(found, sentence))
    storage.write_bytes(storage.join(config.output, "report.html"), page.encode())
    for name, figure in _plots(found).items():
        storage.write_bytes(storage.join(config.output, f"{name}.png"), charts.to_png(figure))
    run_id = _track(config, found, tracker)
    return EvaluateResult(found, columns, tuple(rows), sentence, config.output, run_id)


def report(found: Comparison, sentence: str, **more: Any) -> Report:
    """The comparison as a page; ``more`` are further fields of :class:`Report`."""
    columns, rows = tabulate.table(found)
    page: dict[str, Any] = {
        "title": "Evaluation",
        "subtitle": f"{found.schema.name} · {found.part} · order judged on “{found.task}”",
        "verdict": sentence,
        "columns": columns,
        "rows": tuple(rows),
        "table_note": " ".join([_TABLE_NOTE, *(f"{line}." for line in tabulate.about_retrieval(found))]),
        "calibration": tabulate.curves(found),
        "spots": tabulate.spots(found),
        "floors": tabulate.floors(found),
    }
    return Report(**(page | more))


def _asked(config: EvaluateConfig, dataset: Dataset, progress: Progress) -> Asked:
    bundles = named([("teacher", config.teacher), ("student", config.student)])
    return Asked(
        bundles | _champion_bundles(config, dataset, progress),
        config.part,
        config.protocols,
        config.task,
        config.baselines,
        config.resamples,
        config.cost_candidates,
        config.cost_requests,
        config.seed,
    )


def _champion_bundles(config: EvaluateConfig, dataset: Dataset, progress: Progress) -> dict[str, str]:
    """The champion's models, when there is one that was trained on this very data."""
    release = champion(config.releases) if config.releases else None
    if release is None:
        return {}
    places = named([("champion teacher", release.teacher), ("champion student", release.student)])
    data = dataset.manifest.data_fingerprint
    fitting = {}
    for name, path in places.items():
        try:
            same = read_info(path).data_fingerprint == data
        except ConfigError as error:  # of an older version, or gone: it is beside the point of this evaluation
            progress(f"leaving out the {name}: {error}")
            continue
        if same:
            fitting[name] = path
        else:
            progress(f"leaving out the {name}: it was trained on other data than this dataset")
    return fitting


def _plots(found: Comparison) -> dict[str, charts.Figure]:
    palette = charts.LIGHT
    curves = {n: charts.Curve(c.prediction, c.label, c.count) for n, c in tabulate.curves(found).items()}
    spots = [charts.Spot(**spot.model_dump()) for spot in tabulate.spots(found)]
    return {
        "calibration": charts.calibration(curves, palette),
        "quality_cost": charts.quality_cost(spots, tabulate.floors(found), palette),
    }


def _track(config: EvaluateConfig, found: Comparison, tracker: NullTracker) -> str | None:
    bundles = named([("teacher", config.teacher), ("student", config.student)])
    with tracker.run(f"evaluate {found.schema.name}", "evaluate", tags=lineage(found, bundles)) as run:
        run.log_config(config)
        for entry in found.entries:
            run.log_metrics({f"{entry.model}/{entry.protocol}/{k}": v for k, v in entry.metrics.items()})
        if "://" not in config.output:
            for name in ("evaluation.json", "metrics.csv", "report.html", "calibration.png", "quality_cost.png"):
                run.log_artifact(storage.join(config.output, name))
    return run.run_id


def lineage(found: Comparison, bundles: Mapping[str, str]) -> dict[str, str]:
    """Tags that tie a run to what it judged: bundle ids, the runs that made them, the data."""
    tags = {f"{e.model.replace(' ', '_')}_bundle_id": e.bundle_id for e in found.entries if e.bundle_id}
    runs = {f"{name}_run": tracked_run(path) for name, path in bundles.items()}
    tags["data_fingerprint"] = found.data_fingerprint
    return tags | {name: run for name, run in runs.items() if run}
