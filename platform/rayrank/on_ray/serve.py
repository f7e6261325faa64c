"""The ranking graph on Ray Serve: one deployment per stage, one hop per stage, or all stages in one process.

The deployments are thin shells round the classes of :mod:`rayrank.ranking`; both forms run the same flow with the
same driver, so their scores are the same.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from rayrank.config import parse
from rayrank.messages import (
    DryRunRequest,
    DryRunResponse,
    FeedbackRequest,
    FeedbackResponse,
    ItemHit,
    RankRequest,
    RankResponse,
    RecommendRequest,
    ReleaseInfo,
)
from rayrank.on_ray.aside import Aside
from rayrank.on_ray.bearer import read_token
from rayrank.on_ray.changes import Changes
from rayrank.on_ray.dry_run import DryRuns
from rayrank.on_ray.graph_spec import (
    GraphSpec,
    check_loaded,
    check_machines,
    folding,
    open_item_source,
    open_user_data,
    processes_of,
)
from rayrank.on_ray.hop import hop
from rayrank.on_ray.places import Places, in_process, scoring
from rayrank.on_ray.pool import BusyError, Gate, Pool
from rayrank.on_ray.together import Work
from rayrank.ranking.drive import Driver
from rayrank.ranking.encode import RequestEncoder
from rayrank.ranking.feedback import AGAIN, Accepted, FeedbackStage
from rayrank.ranking.flow import Call, Missed, Stage, StageError, Terms, rank_flow
from rayrank.ranking.follow import follow, names
from rayrank.ranking.fusion import check_weights
from rayrank.ranking.graph import (
    RankingGraph,
    Records,
    bundle_ids,
    flow_parts,
    open_bundles,
    open_policy,
    prepare_index,
    receipt,
)
from rayrank.ranking.items import Items
from rayrank.ranking.release import Release, load_release
from rayrank.ranking.respond import Named, release_info, respond
from rayrank.ranking.retriever import Retriever
from rayrank.ranking.scorer import Scorer
from rayrank.ranking.served_log import ServedLog, shown_of
from rayrank.ranking.user import Rejected, UserStage
from rayrank.ranking.warm import WarmUp

_LOOKING, _LOOK_S = 4, 5.0
"""Searches for titles at once in an ingress replica, and the longest wait of one, seconds."""
QUIET = LoggingConfig(enable_access_log=False, log_level="WARNING")
"""A line per request would cost more than the request; what is logged names no user and no text."""


def build_graph(spec: GraphSpec, page: str | None = None) -> Application:
    """The Serve application of a release; ``page`` is the playground's HTML.

    The release is resolved here, once: replicas that start later serve the same one, whatever the champion is then.

    Raises:
        ConfigError: no such release, no token where one is asked for, or a store of users that cannot be meant.
    """
    release = load_release(spec.releases)
    prepare_index(release, spec.flow)
    read_token(spec.token_file)
    machines = sum(node["Alive"] for node in ray.nodes()) if ray.is_initialized() else 1
    check_machines(spec, machines)
    check_loaded(spec, machines)
    raw = {"spec": folding(spec).model_dump(mode="json"), "release": release.model_dump(mode="json")}
    reserved = {"num_cpus": spec.replicas.num_cpus}
    ingress = serve.deployment(
        name="Ingress",
        **spec.replicas.serve_options("ingress"),
        ray_actor_options=reserved,
        max_ongoing_requests=2 * spec.replicas.ongoing,  # room to say 429 in our own words; beyond the queue Serve does
        max_queued_requests=2 * spec.replicas.ongoing,
        backpressure_config={"status_code": 429, "retry_after_s": BusyError.retry_s},
        logging_config=QUIET,
    )(serve.ingress()(Ingress))
    if spec.fused:
        return ingress.bind(raw, page)
    parts, handles = processes_of(spec, release), {}
    for target in (s for s in (UserState, Retrieve, PreRank, ReRank) if s.name in parts):
        stage, room = target.name, spec.replicas.room(target.name)
        deployment = serve.deployment(
            name=target.__name__,
            **spec.replicas.serve_options(stage),
            ray_actor_options=reserved,
            max_ongoing_requests=room,
            max_queued_requests=room,
            logging_config=QUIET,
        )(target)
        handles[stage] = deployment.bind(raw)
    return ingress.bind(raw, page, handles)


class _Stage(ABC):
    """A stage in a replica of its own."""

    name: Stage

    def __init__(self, raw: Mapping[str, Any]) -> None:
        spec, release = _setup(raw)
        self._places = Places([self.name], spec, 2 * spec.replicas.room(self.name))
        work = self._prepare(spec, release)
        self._work = Work(partial(_quietly, work.one), work.shared)

    @abstractmethod
    def _prepare(self, spec: GraphSpec, release: Release) -> Work:
        """Load what the stage needs; returns what does its work."""

    async def __call__(self, *arguments: Any) -> Any:
        return await self._places.run(Call(self.name, arguments), self._work)


class UserState(_Stage):
    """Who asks, what they did, what they ask about."""

    name = "user"

    def _prepare(self, spec: GraphSpec, release: Release) -> Work:
        bundle = open_bundles(release, ("student",)).first
        store, state = open_user_data(spec, release)
        items = Items.of(bundle.items)
        self._stage = UserStage(bundle, items, store, state)
        self._follower = follow(open_item_source(spec), (bundle, release), [names(items)], items)
        self._feedback = FeedbackStage(self._stage.encoder, state)
        self._writes = Pool(spec.replicas.room("user"), "feedback")  # waits for the disk, which no ranking should
        return Work(self._stage.prepare)

    async def feedback(self, request: FeedbackRequest, request_id: str, now: int) -> Accepted | Rejected | Missed:
        """Keep events."""
        found = await self._writes.run(_quietly, self._feedback.accept, request, request_id, now)
        assert isinstance(found, Accepted | Rejected | Missed)
        return found

    def examples(self, limit: int) -> list[str]:
        """Some known user ids."""
        return self._stage.examples(limit)


class Retrieve(_Stage):
    """Candidates from the whole catalogue."""

    name = "retrieve"

    def _prepare(self, spec: GraphSpec, release: Release) -> Work:
        bundle = open_bundles(release, ("student",)).first
        items, scorer = Items.of(bundle.items), Scorer(bundle)
        with_text = spec.flow.sources.text.weight > 0 and release.teacher is not None
        encode = Scorer(open_bundles(release, ("teacher",)).first).encode if with_text else None
        retriever = Retriever(scorer, items, spec.flow.sources, encode)
        retriever.open_index()
        receivers = [scorer.grow, retriever.grow, names(items)]
        self._follower = follow(open_item_source(spec), (bundle, release), receivers, items)
        return Work(retriever.retrieve)


class PreRank(_Stage):
    """The student."""

    name = "student"

    def _prepare(self, spec: GraphSpec, release: Release) -> Work:
        scorer = Scorer(open_bundles(release, ("student",)).first)
        self._follower = follow(open_item_source(spec), (scorer.bundle, release), [scorer.grow])
        return scoring(scorer)


class ReRank(_Stage):
    """The teacher."""

    name = "teacher"

    def _prepare(self, spec: GraphSpec, release: Release) -> Work:
        scorer = Scorer(open_bundles(release, ("teacher",)).first)
        source = open_item_source(spec)
        self._follower = follow(source, (scorer.bundle, release), [scorer.grow], encode=scorer.encode)
        return scoring(scorer)


class Ingress:
    """HTTP in and out, and the order of the stages."""

    def __init__(
        self, raw: Mapping[str, Any], page: str | None, handles: Mapping[str, DeploymentHandle] | None = None
    ) -> None:
        self._spec, release = _setup(raw)
        self._page, self._handles = page, _lean(handles)
        self._gate = Gate(self._spec.replicas.ongoing)
        self._titles = Aside("titles", _LOOKING, _LOOK_S)
        self._lists = Aside("user state", _LOOKING, self._spec.budgets.user)
        self._log = None if self._spec.served_log is None else ServedLog(self._spec.served_log)
        if handles is None:
            store, state = open_user_data(self._spec, release)
            records = Records(state, items=open_item_source(self._spec))
            graph = RankingGraph.open(release, self._spec.flow, store, self._spec.policy, records)
            if "retrieve" not in self._spec.flow.without:
                graph.open_index()
            self._parts, self._named, self._user, self._policy = graph.parts, graph.named, graph.user, graph.policy
            self._feedback, self._writes = graph.feedback, Pool(self._spec.replicas.ongoing, "feedback")
            encoder, follower = graph.user.encoder, graph.follower
            invoke = in_process(graph, self._now, self._spec)
        else:
            student = open_bundles(release, ("student",)).first
            items, schema = Items.of(student.items), student.info.data_schema
            check_weights(release.fusion, schema, "fusion")
            self._parts = flow_parts(release, self._spec.flow, schema, items)
            self._named = Named(release.release_id, bundle_ids(release), items, schema)
            self._policy = open_policy(self._spec.policy, student, items)
            encoder, scorer = RequestEncoder(schema, student.features, items), Scorer(student)
            receivers = (
                [names(items)] if self._policy is None else [scorer.grow, names(items), self._policy.follows(scorer)]
            )
            follower = follow(open_item_source(self._spec), (student, release), receivers, items)
            invoke = self._through_handles
        self.changes = Changes.of(self._spec.items, encoder, follower, self._gate)
        self._driver, self._warm_up = Driver(invoke, self._spec.budgets), WarmUp(invoke, self._parts)
        self._dry_runs = DryRuns(self._driver, self._parts, self._named, self._policy)
        self._info = release_info(self._named, release)

    def __serve_build_asgi_app__(self) -> Any:
        from rayrank.on_ray.api import build_api

        return build_api(self, self._page, read_token(self._spec.token_file))

    async def answer(self, request: RankRequest | RecommendRequest, request_id: str) -> RankResponse:
        """Run the flow under its budgets.

        Raises:
            BusyError: this replica works on as many requests as it may.
        """
        with self._gate:
            # Drawn anew, not by the request id: clients choose that, and under a constant one nothing would be drawn.
            key = uuid.uuid4().hex
            terms = self._policy.terms(key) if self._policy else Terms(key)
            flow = rank_flow(request, self._parts, terms)
            ranked, timings = await self._driver.run(flow, request_id, request.timeout_ms)
        response = respond(request, ranked, self._named, request_id, timings)
        if self._log is not None:
            self._log.note(shown_of(request, ranked, response, self._now()))
        return response

    def __del__(self) -> None:
        """Serve calls this before it ends a replica: what waits for the log is written."""
        log = getattr(self, "_log", None)
        if log is not None:
            log.close()

    async def tell(self, request: FeedbackRequest, request_id: str) -> FeedbackResponse:
        """Keep events; they are on disk when this returns.

        Raises:
            BusyError: this replica works on as many requests as it may.
            StageError: the store gives no answer, and may still keep them; what was sent may be sent again.
        """
        with self._gate:
            try:
                found = await asyncio.wait_for(self._kept(request, request_id), self._spec.budgets.user)
            except Exception as error:  # a dead replica raises many kinds
                raise StageError(f"feedback: no answer ({type(error).__name__}); {AGAIN}") from None
        return receipt(found, request_id)

    async def _kept(self, request: FeedbackRequest, request_id: str) -> Accepted | Rejected | Missed:
        if self._handles is None:
            found = await self._writes.run(self._feedback.accept, request, request_id, self._now())
        else:
            found = await hop(self._handles["user"].feedback, request, request_id, self._now())
        assert isinstance(found, Accepted | Rejected | Missed)
        return found

    async def dry_run(self, asked: DryRunRequest, request_id: str) -> DryRunResponse:
        """Each request under the policy in force and under another one.

        Raises:
            BusyError: this replica works on as many requests as it may.
            RequestError: no policy file is followed, or the other policy is not valid.
        """
        with self._gate:
            return await self._dry_runs.run(asked, request_id)

    async def check_health(self) -> None:
        """Serve asks this before it sends requests here, and then from time to time.

        A missing stage must not end this replica, which answers without it: the HTTP route tells of it.
        """
        with suppress(StageError):
            await self.ready()

    async def ready(self) -> None:
        """Return when every stage has answered a first request.

        Raises:
            StageError: one has not yet.
        """
        await self._warm_up.finish()

    async def describe(self) -> ReleaseInfo:
        """What is served, but for its users."""
        info = self._info
        if self._policy is not None:
            info = info.model_copy(update=self._policy.told())
        if self._log is not None:
            counts = {"written": self._log.written, "dropped": self._log.dropped}
            info = info.model_copy(update={"served_log": counts})
        return info.model_copy(update={"told": self.changes.counts(), "items_warning": self.changes.trouble()})

    async def examples(self) -> list[str]:
        """Some known user ids.

        Raises:
            BusyError: too many ask.
            StageError: the store or the user stage gives no answer.
        """
        limit = self._spec.example_users
        if not limit:
            return []
        with self._gate:
            if self._handles is None:
                return list(await self._lists.run(self._user.examples, limit))
            try:
                users = await asyncio.wait_for(hop(self._handles["user"].examples, limit), self._spec.budgets.user)
            except Exception as error:  # a dead replica raises many kinds
                raise StageError(f"user state: no answer ({type(error).__name__})") from None
        return list(users)

    async def search(self, query: str, limit: int) -> list[ItemHit]:
        """Items by title.

        Raises:
            BusyError: too many ask.
            StageError: no answer in time.
        """
        with self._gate:
            return list(await self._titles.run(self._named.items.search, query, limit))

    def _now(self) -> int:
        return self._spec.now if self._spec.now is not None else int(time.time())

    async def _through_handles(self, call: Call) -> Any:
        assert self._handles is not None
        extra = (self._now(),) if call.stage == "user" else ()
        return await hop(self._handles[call.stage], *call.arguments, *extra)


def _lean(handles: Mapping[str, DeploymentHandle] | None) -> Mapping[str, DeploymentHandle] | None:
    """Plain pickle between our own replicas: cloudpickle looks at every object in Python, and none needs that."""
    if handles is None:
        return None
    return {
        stage: handle.options(request_serialization="pickle", response_serialization="pickle")
        for stage, handle in handles.items()
    }


def _quietly(work: Callable[..., Any], *arguments: Any) -> Any:
    """The work; Serve logs the trace of what a replica raises, which must not tell what the user sent."""
    try:
        return work(*arguments)
    except Exception as error:
        raise RuntimeError(f"the stage failed: {type(error).__name__}") from None


def _setup(raw: Mapping[str, Any]) -> tuple[GraphSpec, Release]:
    """Every replica starts here: one torch thread, spec and release validated again."""
    import torch

    torch.set_num_threads(1)
    return parse(GraphSpec, raw["spec"], "serve"), parse(Release, raw["release"], "release")
