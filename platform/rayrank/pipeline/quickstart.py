"""Run the whole path on a small dataset: every job once, on one Ray, ending in a report.

The configs of the jobs are derived in :mod:`rayrank.pipeline.quickstart_plan` and written beside the results, so that
each job can be run again by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from rayrank.config import replace
from rayrank.on_ray.cluster import ensure_cluster
from rayrank.on_ray.profile import launch_profile
from rayrank.pipeline.distill import distill
from rayrank.pipeline.evaluate import evaluate
from rayrank.pipeline.label import label
from rayrank.pipeline.prepare import prepare
from rayrank.pipeline.probe import probe
from rayrank.pipeline.promote import promote
from rayrank.pipeline.quickstart_plan import Plan, QuickstartConfig, plan, write_job, write_plan
from rayrank.pipeline.quickstart_report import Made, write_summary
from rayrank.pipeline.score import score
from rayrank.pipeline.serve import serving
from rayrank.pipeline.train_teacher import train_teacher
from rayrank.pipeline.tune import tune
from rayrank.sources.dataset import Dataset

__all__ = ["QuickstartConfig", "QuickstartResult", "quickstart"]

Progress = Callable[[str], None]


@dataclass(frozen=True)
class QuickstartResult:
    """The table, the verdict and where everything is."""

    lines: list[str]
    promoted: bool
    seconds: float

    @property
    def refused(self) -> bool:
        """Whether a gate of promotion failed; the job then exits with code 3."""
        return not self.promoted

    def summary(self) -> list[str]:
        """What a person wants to read."""
        return self.lines


def quickstart(config: QuickstartConfig, progress: Progress) -> QuickstartResult:
    """Run prepare → train_teacher → label → tune → distill → evaluate → promote → serve → score; safe to run again.

    Raises:
        ConfigError: whatever a job refuses.
    """
    began, made, jobs = time.monotonic(), Made(), plan(config)
    write_plan(config.output, jobs)
    with ExitStack() as stack:
        with _step(made, "start Ray", progress):
            stack.enter_context(launch_profile(config.http.profile, config.cluster.address, progress))
            stack.enter_context(ensure_cluster(config.cluster))
        _train(config.output, jobs, made, progress)
        _judge(jobs, made, progress)
        if made.promote is not None and made.promote.promoted:
            _serve(config, jobs, made, progress)
    seconds = time.monotonic() - began
    lines = write_summary(config.output, made, seconds)
    return QuickstartResult(lines, bool(made.promote and made.promote.promoted), seconds)


def _train(output: str, jobs: Plan, made: Made, progress: Progress) -> None:
    with _step(made, "prepare", progress):
        made.prepare = prepare(jobs.prepare, progress)
    with _step(made, "train teacher", progress):
        made.teacher = train_teacher(jobs.train_teacher, progress)
    with _step(made, "label", progress):
        made.label = label(jobs.label, progress)
    with _step(made, "tune", progress):
        made.tune = tune(jobs.tune, progress)
    with _step(made, "distill", progress):
        winner = replace(jobs.distill, {**made.tune.best, "parent_run": made.tune.winner_run})
        write_job(output, "distill", winner)  # over the one that the trials started from
        made.student = distill(winner, progress)


def _judge(jobs: Plan, made: Made, progress: Progress) -> None:
    with _step(made, "evaluate", progress):
        made.evaluate = evaluate(jobs.evaluate, progress)
    with _step(made, "promote", progress):
        made.promote = promote(jobs.promote, progress, made.evaluate.comparison)


def _serve(config: QuickstartConfig, jobs: Plan, made: Made, progress: Progress) -> None:
    item_ids = Dataset.open(jobs.prepare.path).catalogue_table().column("item_id").slice(0, 100).to_pylist()
    with ExitStack() as stack:
        with _step(made, "start serving", progress):
            url = stack.enter_context(serving(jobs.serve, progress))
        with _step(made, "requests", progress):
            made.probe = probe(url, item_ids, config.requests)
    with _step(made, "score", progress):
        made.score = score(jobs.score, progress)


@contextmanager
def _step(made: Made, name: str, progress: Progress) -> Iterator[None]:
    progress(f"── {name}")
    began = time.monotonic()
    yield
    made.seconds[name] = round(time.monotonic() - began, 2)
