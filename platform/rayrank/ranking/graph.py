"""All stages in one process: the reference for the served graph, and what batch scoring and plain Python use."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rayrank.bundle import Bundle, load_bundle, read_id
from rayrank.config import ConfigError
from rayrank.messages import (
    ErrorField,
    FeedbackRequest,
    FeedbackResponse,
    ItemsRequest,
    RankRequest,
    RankResponse,
    RecommendRequest,
)
from rayrank.ranking.context import ColdVectors, Prepared
from rayrank.ranking.desk import changes_of
from rayrank.ranking.feedback import Accepted, FeedbackStage
from rayrank.ranking.flow import Call, FlowParts, FlowSettings, Missed, Ranked, StageError, Terms, rank_flow
from rayrank.ranking.follow import ItemSource, follow, growth_of, names
from rayrank.ranking.fusion import check_weights
from rayrank.ranking.growth import Receiver
from rayrank.ranking.items import Items
from rayrank.ranking.merge import Sources
from rayrank.ranking.policy import ItemFacts, Policy
from rayrank.ranking.policy_file import PolicyFile
from rayrank.ranking.policy_spec import read_policy
from rayrank.ranking.release import Release
from rayrank.ranking.respond import Named, respond
from rayrank.ranking.retriever import Retriever
from rayrank.ranking.scorer import Scorer
from rayrank.ranking.served_log import ServedLog, shown_of
from rayrank.ranking.state import StateStore
from rayrank.ranking.store import UserStore
from rayrank.ranking.user import Rejected, UserStage
from rayrank.schema import DatasetSchema

Request = RankRequest | RecommendRequest


class RequestError(ValueError):
    """The request breaks a rule; ``fields`` say which."""

    def __init__(self, fields: Sequence[ErrorField]) -> None:
        self.fields = list(fields)
        super().__init__("; ".join(f"{f.field}: {f.problem}" for f in fields))


@dataclass(frozen=True)
class Bundles:
    """The loaded models of a release; one of them may be absent, not both."""

    student: Bundle | None
    teacher: Bundle | None

    @property
    def first(self) -> Bundle:
        """The one that defines catalogue and features (they are equal in both)."""
        found = self.student or self.teacher
        assert found is not None
        return found

    @property
    def ids(self) -> dict[str, str]:
        """Role -> bundle id."""
        both = {"student": self.student, "teacher": self.teacher}
        return {role: bundle.bundle_id for role, bundle in both.items() if bundle is not None}


@dataclass(frozen=True)
class Records:
    """What a graph writes down while it answers."""

    state: StateStore | None = None  # what users did
    log: ServedLog | None = None  # what they were shown
    items: ItemSource | None = None  # what was told of items


class RankingGraph:
    """User state → retrieve → student → teacher → policy, in this process."""

    def __init__(
        self,
        bundles: Bundles,
        release: Release,
        settings: FlowSettings,
        store: UserStore | None,
        policy: str | None = None,
        records: Records = Records(),
    ) -> None:
        check_weights(release.fusion, bundles.first.info.data_schema, "fusion")
        self.bundles, self.release, self.log = bundles, release, records.log
        self.items = Items.of(bundles.first.items)
        self.user = UserStage(bundles.first, self.items, store, records.state)
        self.feedback = FeedbackStage(self.user.encoder, records.state)
        both = {"student": bundles.student, "teacher": bundles.teacher}
        self._scorers = {role: Scorer(bundle) for role, bundle in both.items() if bundle is not None}
        self._first = next(iter(self._scorers.values()))
        teacher = self._scorers.get("teacher")
        encode = teacher.encode if teacher is not None and teacher.reads else None
        self._retriever = Retriever(self._first, self.items, settings.sources, encode)
        schema = bundles.first.info.data_schema
        self.parts = replace(
            flow_parts(release, settings, schema, self.items),
            has_student=bundles.student is not None,
            has_teacher=bundles.teacher is not None,
        )
        self.named = Named(release.release_id, bundles.ids, self.items, schema)
        self.policy = open_policy(policy, bundles.first, self.items)
        self._of = (bundles.first, release)
        self.follower = follow(records.items, self._of, self._receivers(), self.items, encode)
        self.growth = self.follower.growth if self.follower else growth_of(self._of, self._receivers(), self.items)

    def _receivers(self) -> list[Receiver]:
        """Who must know of new items, names last but for the policy, whose rules name them."""
        found: list[Receiver] = [scorer.grow for scorer in self._scorers.values()]
        found += [self._retriever.grow, names(self.items)]
        return found if self.policy is None else [*found, self.policy.follows(self._first)]

    @classmethod
    def open(
        cls,
        release: Release,
        settings: FlowSettings | None = None,
        store: UserStore | None = None,
        policy: str | None = None,
        records: Records = Records(),
    ) -> RankingGraph:
        """Load the release's bundles (verified) and compose them; ``policy`` is the path of a policy file."""
        return cls(open_bundles(release), release, settings or FlowSettings(), store, policy, records)

    def answer(
        self,
        request: Request,
        now: int | None = None,
        terms: Terms | None = None,
        prepared: Prepared | None = None,
    ) -> tuple[Ranked, dict[str, float]]:
        """Run the flow; returns its answer and milliseconds by stage. Without ``terms`` those of the policy file hold.

        ``prepared`` is what the user stage would say, where the caller knows it already.

        Raises:
            RequestError: the request breaks a rule of this release.
        """
        moment = int(time.time()) if now is None else now
        stages = self.stages(moment)
        timings: dict[str, float] = {}
        flow = rank_flow(request, self.parts, terms or self.terms(uuid.uuid4().hex))
        result: Any = None
        began = time.perf_counter()
        while True:
            try:
                call: Call = flow.send(result)
            except StopIteration as done:
                timings["total"] = (time.perf_counter() - began) * 1000
                return done.value, timings
            start = time.perf_counter()
            told = call.stage == "user" and prepared is not None
            result = prepared if told else stages[call.stage](*call.arguments)
            timings[call.stage] = (time.perf_counter() - start) * 1000
            if isinstance(result, Rejected):
                raise RequestError(result.fields)

    def respond(self, request: Request, now: int | None = None, request_id: str | None = None) -> RankResponse:
        """The same as a response message, which goes to the served log too, if there is one.

        A caller that gives the ``request_id`` decides by it what explores: for tests.
        """
        moment, key = int(time.time()) if now is None else now, request_id or uuid.uuid4().hex
        ranked, timings = self.answer(request, moment, self.terms(key))
        response = respond(request, ranked, self.named, key, timings)
        if self.log is not None:
            self.log.note(shown_of(request, ranked, response, moment))
        return response

    def terms(self, key: str) -> Terms:
        """What holds for a request that comes now."""
        return Terms(key) if self.policy is None else self.policy.terms(key)

    def tell(self, request: FeedbackRequest, now: int | None = None, request_id: str | None = None) -> FeedbackResponse:
        """Keep what a user did; on disk, and in the history of the user's next request, when this returns.

        Raises:
            RequestError: labels that no task of the release could have.
            StageError: the store is down, or there is none; nothing was kept.
        """
        asked = request_id or uuid.uuid4().hex
        return receipt(self.feedback.accept(request, asked, int(time.time()) if now is None else now), asked)

    def scorer(self, role: str) -> Scorer:
        """The student's or the teacher's."""
        return self._scorers[role]

    def stages(self, now: int) -> Mapping[str, Callable[..., Any]]:
        """Stage -> the function that does it."""
        scoring = {role: scorer.score for role, scorer in self._scorers.items()}
        return {"user": lambda r: self.user.prepare(r, now), "retrieve": self._retriever.retrieve, **scoring}

    def open_index(self) -> None:
        """Retrieve as a service does: see :meth:`Retriever.open_index`."""
        self._retriever.open_index()

    def add_items(self, request: ItemsRequest) -> int:
        """Change the catalogue of this process: new items are retrieved, ranked and known by id at once.

        Returns how many texts were encoded (0 without a teacher or student that reads text).
        """
        changes = changes_of(request, self.named.schema, int(time.time()))
        cold = self.growth.described([c for c in changes if c.kind == "put"])
        reader = self._scorers.get("teacher") or self._scorers["student"]
        vectors = reader.encode(cold)
        self.growth.apply([(changes, vectors)])
        return 0 if vectors is None else len(cold)


def receipt(found: Accepted | Rejected | Missed, request_id: str) -> FeedbackResponse:
    """What the feedback stage found, as the answer to its sender.

    Raises:
        RequestError: a rule of the release is broken.
        StageError: nobody knows whether it was kept.
    """
    if isinstance(found, Rejected):
        raise RequestError(found.fields)
    if isinstance(found, Missed):
        raise StageError(f"feedback: {found.reason}")
    return FeedbackResponse(accepted=found.new, duplicates=found.old, request_id=request_id)


def open_bundles(release: Release, roles: Sequence[str] = ("student", "teacher"), verify: bool = True) -> Bundles:
    """Load the bundles of a release and refuse a pair that does not belong together.

    Raises:
        ConfigError: a bundle is damaged, has another id than the release says, or another catalogue.
    """
    student = _open(release.student, release.student_id, verify) if "student" in roles else None
    teacher = None
    if release.teacher is not None and "teacher" in roles:
        teacher = _open(release.teacher, release.teacher_id, verify)
    bundles = Bundles(student, teacher)
    if student is not None and teacher is not None:
        _check_pair(student, teacher)
    return bundles


def flow_parts(release: Release, settings: FlowSettings, schema: DatasetSchema, items: Items) -> FlowParts:
    """What :func:`rank_flow` needs to serve a release."""
    return FlowParts(
        settings=settings,
        weights=release.fusion,
        tasks=tuple(t.name for t in schema.event_tasks),
        items=items,
        cold_vectors=ColdVectors(),
        has_teacher=release.teacher is not None,
    )


def open_policy(path: str | None, bundle: Bundle, items: Items) -> PolicyFile | None:
    """The policy file, followed from now on; None without one.

    Raises:
        ConfigError: unreadable, invalid, or it does not fit the release.
    """
    return None if path is None else PolicyFile(path, ItemFacts.of(bundle, items))


def check_policy(path: str, release: Release) -> None:
    """Refuse a policy file before anything is started.

    Raises:
        ConfigError: unreadable, invalid, or it does not fit the release.
    """
    spec = read_policy(path)
    bundle = open_bundles(release, ("student",), verify=False).first  # replicas verify it
    Policy(spec, ItemFacts.of(bundle, Items.of(bundle.items)))


def prepare_index(release: Release, settings: FlowSettings) -> None:
    """Build the index of a large catalogue, where there is none yet, so that replicas find it in its folder.

    Raises:
        ConfigError: as :func:`~rayrank.ranking.nearest.open_nearest`.
    """
    sources, items = settings.sources, pq.read_metadata(Path(release.student) / "items.parquet").num_rows
    if items < sources.index.exact_below or not sources.vector.weight or "retrieve" in settings.without:
        return
    bundle = open_bundles(release, ("student",), verify=False).first  # replicas verify it
    Retriever(Scorer(bundle), Items.of(bundle.items), Sources(index=sources.index)).open_index()


def bundle_ids(release: Release) -> dict[str, str]:
    """Role -> bundle id, from the manifests alone."""
    places = {"student": release.student, "teacher": release.teacher}
    return {role: read_id(place) for role, place in places.items() if place is not None}


def _open(path: str, expected: str | None, verify: bool) -> Bundle:
    bundle = load_bundle(Path(path), verify=verify)
    if expected is not None and bundle.bundle_id != expected:
        rule = f"the release was made with bundle {expected}"
        raise ConfigError(path, bundle.bundle_id, rule, "promote again, or restore the bundle")
    return bundle


def _check_pair(student: Bundle, teacher: Bundle) -> None:
    same = {
        "features.json": student.features == teacher.features,
        "item ids": student.items.column("item_id").equals(teacher.items.column("item_id")),
        "schema": student.info.schema_fingerprint == teacher.info.schema_fingerprint,
    }
    for what, equal in same.items():
        if not equal:
            rule = f"student and teacher of a release must share their {what}"
            raise ConfigError(str(teacher.path), teacher.bundle_id, rule, "train both on the same dataset")
