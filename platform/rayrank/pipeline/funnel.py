"""The ``funnel`` job: what a release's cuts lose of the teacher's best, at what cost, and the cheapest that will do."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import Field, model_validator

from rayrank.config import Config, ConfigError, DataPath
from rayrank.metrics.scores import Array
from rayrank.pipeline import charts, funnel_charts, funnel_report
from rayrank.pipeline.comparison import Part, Progress, judged_task
from rayrank.pipeline.cost import one_thread
from rayrank.pipeline.funnel_cuts import Funnel, Pair
from rayrank.pipeline.funnel_found import (
    Choice,
    PairFound,
    Segment,
    choose,
    item_segments,
    pairs_found,
    request_segments,
)
from rayrank.pipeline.funnel_requests import PastRequest, Sampling, sample_requests
from rayrank.pipeline.funnel_timing import Timing, time_pairs
from rayrank.pipeline.slices import ContextValues, SlicesConfig, item_bands, user_bands
from rayrank.pipeline.surroundings import Surroundings
from rayrank.ranking.flow import FlowSettings
from rayrank.ranking.graph import RankingGraph, open_bundles
from rayrank.ranking.merge import Sources
from rayrank.ranking.release import Release, load_release
from rayrank.ranking.store import UserStore
from rayrank.sources import storage
from rayrank.sources.dataset import Dataset
from rayrank.tracking import MlflowTracking, NullTracker, TrackingConfig, check_tracking, open_tracker

_RESAMPLES = 1000


class FunnelConfig(Config):
    """Which release, which requests, which cuts, and what they may cost."""

    dataset: DataPath = Field(description="dataset folder that the release was trained on")
    releases: DataPath = Field(description="releases folder (its champion is measured) or one release")
    part: Part = Field(
        "valid",
        description="users are asked at their first request of it; test: to report a pair, not to choose",
    )
    task: str | None = Field(None, description="binary task whose positives users liked; None: that of retrieval")
    requests: int = Field(200, ge=10, description="requests, one per user; the teacher scores the catalogue for each")
    k: int = Field(10, ge=1, le=100, description="how many items are shown; NDCG is cut here too")
    pools: tuple[int, ...] = Field((100, 200, 500), min_length=1, description="N1: items that the retriever finds")
    reranks: tuple[int, ...] = Field(
        (0, 20, 50, 100, 200), min_length=1, description="N2: items that the teacher scores; 0: none"
    )
    sources: Sources = Field(
        default_factory=Sources, description="where the retriever looks; as in serve's flow.sources"
    )
    timed: int = Field(30, ge=5, description="requests that are timed, each under every pair in turn")
    repeats: int = Field(3, ge=1, description="answers to each of them under a pair; the quickest counts")
    budget_ms: float = Field(50.0, gt=0, description="most milliseconds from the user's state to the answer")
    share: float = Field(0.95, gt=0, le=1, description="share of requests that must keep to the budget")
    slack: float = Field(0.01, ge=0, description="how much more than the best pair in budget the cheapest may lose")
    slices: SlicesConfig = Field(default_factory=SlicesConfig, description="when users and items count as cold")
    histories: DataPath | None = Field(None, description="sqlite file of user histories; None: a temporary one")
    seed: int = Field(0, description="of the sample, the order of timing and the intervals")
    output: DataPath = Field(description="folder for funnel.json, funnel.md and plots")
    tracking: TrackingConfig = Field(default_factory=MlflowTracking, description="where the run is recorded")

    @model_validator(mode="after")
    def _cuts(self) -> FunnelConfig:
        if min(self.pools) < self.k:
            raise ValueError(f"pools: a pool of {min(self.pools)} cannot show {self.k} items")
        if any(0 < n < self.k for n in self.reranks):
            raise ValueError(f"reranks: 0, or at least k ({self.k}): what is shown is scored by one model")
        if not self.pairs:
            raise ValueError("reranks: none fits into a pool")
        return self

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """(N₁, N₂) with N₂ ≤ N₁, cheapest first."""
        return tuple((n, m) for n in sorted(set(self.pools)) for m in sorted(set(self.reranks)) if m <= n)


@dataclass(frozen=True)
class FunnelResult:
    """What was found."""

    dataset: str
    part: Part
    task: str
    release: Release
    k: int
    requests: int
    budget: tuple[float, float]  # milliseconds, share of requests
    pairs: tuple[PairFound, ...]
    orders: dict[str, float]  # NDCG of the whole catalogue ordered by teacher, student, popularity
    segments: tuple[Segment, ...]
    segments_of: Pair  # the pair whose losses segments tell
    choice: Choice
    same: float  # share of the graph's own answers equal to the lists that losses were computed from
    surroundings: Surroundings
    output: str
    run_id: str | None = None

    def summary(self) -> list[str]:
        """The tables, where the files are, and the pair to serve with."""
        return [*funnel_report.as_text(self), f"results: {self.output}", funnel_report.verdict(self)]


def funnel(config: FunnelConfig, progress: Progress) -> FunnelResult:
    """Measure and write the results; safe to run again (files are replaced).

    Raises:
        ConfigError: no release or dataset, a release without a teacher or of other data, no request to ask.
    """
    check_tracking(config.tracking)
    dataset, release = Dataset.open(config.dataset), load_release(config.releases)
    task = judged_task(dataset.schema, config.task)
    graph = _graph(config, release, dataset)
    storage.remove(storage.join(config.output, "funnel.json"))  # it comes last: without it results are not whole
    with ThreadPoolExecutor(1) as helper:  # opening the store imports for seconds
        opening = helper.submit(open_tracker, config.tracking)
        asked = _requests(config, dataset, graph, task, progress)
        result = _measured(config, (dataset, release, task), graph, asked, progress)
        tracker = opening.result()
    for name, figure in funnel_charts.plots(result, charts.LIGHT).items():
        storage.write_bytes(storage.join(config.output, f"{name}.png"), charts.to_png(figure))
    funnel_report.write(result)
    return replace(result, run_id=_track(config, result, tracker))


def _graph(config: FunnelConfig, release: Release, dataset: Dataset) -> RankingGraph:
    if release.teacher is None:
        raise ConfigError(
            "releases", release.release_id, "the release has no teacher to lose anything of", "promote one"
        )
    bundles = open_bundles(release)
    found, wanted = bundles.first.info.data_fingerprint, dataset.manifest.data_fingerprint
    if found != wanted:
        rule = "the release was trained on other data than this dataset"
        raise ConfigError("dataset", config.dataset, rule, f"give the dataset it was trained on ({release.dataset})")
    settings = FlowSettings(pool=max(config.pools), rerank=max(config.reranks), sources=config.sources)
    return RankingGraph(bundles, release, settings, None)


def _requests(
    config: FunnelConfig, dataset: Dataset, graph: RankingGraph, task: str, progress: Progress
) -> list[PastRequest]:
    window = graph.bundles.first.info.window
    sampling = Sampling(config.part, task, config.requests, window, config.seed)
    with tempfile.TemporaryDirectory() as folder:
        store = UserStore.open(config.histories or str(Path(folder, "histories.sqlite")), dataset, progress)
        try:
            progress(f"sampling requests of {config.part}")
            found = sample_requests(dataset, store, sampling)
        finally:
            store.close()
    if not found:
        raise ConfigError("part", config.part, f"no user likes ('{task}') anything new there", "choose another part")
    return found


def _measured(
    config: FunnelConfig,
    about: tuple[Dataset, Release, str],
    graph: RankingGraph,
    asked: list[PastRequest],
    progress: Progress,
) -> FunnelResult:
    dataset, release, task = about
    items = item_bands(dataset, config.slices)
    cutting = Funnel(graph, config.pairs, config.k, items.code, len(items.values))
    progress(f"scoring the catalogue for {len(asked)} requests, with both models")
    with one_thread():
        cuts = [cutting.cut(request) for request in asked]
    progress(f"timing {len(config.pairs)} pairs in turn")
    both = list(zip(asked, cuts, strict=True))[: config.timed]
    times, same = time_pairs(graph, both, Timing(config.pairs, config.k, config.repeats, config.seed))
    pairs = pairs_found(cuts, times, config.share, _RESAMPLES, config.seed)
    choice = choose(pairs, config.budget_ms, config.slack)
    told = choice.pair or max(config.pairs)
    codes = request_codes(dataset, asked, config.slices)
    segments = request_segments(cuts, codes, told) + item_segments(cuts, items.code, items.values, told)
    return FunnelResult(
        dataset=dataset.schema.name,
        part=config.part,
        task=task,
        release=release,
        k=config.k,
        requests=len(asked),
        budget=(config.budget_ms, config.share),
        pairs=pairs,
        orders={name: float(np.mean([one.ndcg[name] for one in cuts])) for name in cuts[0].ndcg},
        segments=tuple(segments),
        segments_of=told,
        choice=choice,
        same=same,
        surroundings=Surroundings.now(),
        output=config.output,
    )


def request_codes(
    dataset: Dataset, asked: list[PastRequest], spec: SlicesConfig
) -> dict[str, tuple[Array, tuple[str, ...]]]:
    """Dimension -> (code of each request, names of the codes): user activity and the values of the context."""
    users = user_bands(dataset, spec)
    found = {"user": (users.code[[request.context.user for request in asked]], users.values)}
    for feature in dataset.schema.context_features:
        if feature.name not in asked[0].context.context:
            continue
        value = np.array([request.context.context[feature.name] for request in asked])
        told = ContextValues.of(feature, dataset.manifest.features.context, value)
        found[feature.name] = (told.codes(value), told.dimension.values)
    return found


def _track(config: FunnelConfig, result: FunnelResult, tracker: NullTracker) -> str | None:
    tags = {"release_id": result.release.release_id, "chosen": str(result.choice.pair)}
    with tracker.run(f"funnel {result.dataset}", "funnel", tags=tags) as run:
        run.log_config(config)
        for one in result.pairs:
            named = {"lost": one.lost.value, "ndcg": one.ndcg, "latency_ms": one.latency_ms}
            run.log_metrics({f"{one.pool}-{one.rerank}/{name}": value for name, value in named.items()})
        if "://" not in config.output:
            for name in ("funnel.json", "funnel.md", *(f"{plot}.png" for plot in funnel_charts.PLOTS)):
                run.log_artifact(storage.join(config.output, name))
    return run.run_id
