"""The score job: batch scores of shards or requests, by the code that serves."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import Field

from rayrank.config import Config, ConfigError, DataPath
from rayrank.on_ray.cluster import ClusterConfig, check_capacity, ensure_cluster
from rayrank.on_ray.graph_spec import open_store
from rayrank.on_ray.score import RequestsInput, Scored, ScoreInput, ScoreTask, ShardsInput, score_all
from rayrank.ranking.flow import FlowSettings
from rayrank.ranking.release import load_release
from rayrank.wording import counted


class ScoreConfig(Config):
    """What is scored with which release, and where the scores go."""

    releases: DataPath = Field(description="releases folder (its champion scores) or one release")
    input: ScoreInput = Field(ShardsInput(), description="targets of a dataset, a file of requests, or users × items")
    output: DataPath = Field(description="folder of the scores; those of another release or input are replaced")
    actors: int = Field(1, ge=0, description="scoring processes, one logical CPU each; 0: this process, without Ray")
    flow: FlowSettings = Field(default_factory=FlowSettings, description="how many candidates each stage passes on")
    histories: DataPath | None = Field(
        None, description="sqlite file of user histories; None: one in a private folder of temporary files"
    )
    now: int | None = Field(None, description="unix seconds taken for the present (demos on old data); None: the clock")
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="where Ray runs")


@dataclass(frozen=True)
class ScoreResult:
    """What was made and where."""

    scores: str
    release_id: str
    files: int
    reused_files: int
    rows: int
    seconds: float

    def summary(self) -> list[str]:
        """The lines a person wants to read."""
        made = (
            f"{counted(self.rows, 'row')} in {counted(self.files, 'file')}, {self.reused_files} of them there already"
        )
        return [f"{made} ({self.seconds:.1f} s)", f"scores of release {self.release_id}: {self.scores}"]


def score(config: ScoreConfig, progress: Callable[[str], None]) -> ScoreResult:
    """Score everything that has no file yet; safe to run again.

    Raises:
        ConfigError: no release, no dataset or request file, a malformed request, too few CPUs.
    """
    began = time.monotonic()
    release = load_release(config.releases)
    roles = () if isinstance(config.input, RequestsInput) else config.input.roles
    if release.teacher is None and roles == ("teacher",):
        raise ConfigError("input.roles", "teacher", "the release has no teacher", "use roles: [student]")
    if not isinstance(config.input, ShardsInput):
        store = open_store(release, config.histories, progress)
        if store is not None:
            store.close()
    task = ScoreTask(
        release=release,
        input=config.input,
        output=config.output,
        flow=config.flow,
        histories=config.histories,
        now=config.now,
        stall_s=config.cluster.stall_s,
    )
    done = _run(config, task, progress)
    return ScoreResult(done.path, release.release_id, done.files, done.reused, done.rows, time.monotonic() - began)


def _run(config: ScoreConfig, task: ScoreTask, progress: Callable[[str], None]) -> Scored:
    if config.actors == 0:
        return score_all(task, 0, progress)
    with ensure_cluster(config.cluster) as cluster:
        check_capacity(cluster, config.actors, "actors")
        return score_all(task, config.actors, progress)
