"""What goes over the wire: requests, responses and errors of the ranking service, with limits on every size.

Knows pydantic only. Validators name the field and the rule and never repeat a value: what users send (texts, ids)
must not reach logs or error bodies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from rayrank.message_values import (
    MAX_BLOCK,
    MAX_CANDIDATES,
    MAX_CELL,
    MAX_HISTORY,
    MAX_ITEMS,
    MAX_K,
    MAX_TEXT_TOTAL,
    MAX_TIMEOUT_MS,
    Attributes,
    Context,
    Flag,
    ItemId,
    Labels,
    Number,
    RequestId,
    Text,
    Time,
    UserId,
    Weights,
    Whole,
)
from rayrank.wording import few_words

AnsweredBy = Literal["teacher", "student", "popularity"]


class Message(BaseModel):
    """Base of every message: frozen, unknown keys refused; ``"3"`` and ``true`` are no numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TextItem(Message):
    """An item by id, or one that the catalogue may not know, described by text and raw attributes."""

    item_id: ItemId | None = Field(None, description="id in the catalogue; a new id is allowed together with text")
    text: Text | None = Field(None, description="full text of an item that the catalogue does not know")
    attributes: Attributes = Field(
        default_factory=dict, description="raw item columns (title, genres, …); they also fill the text template"
    )

    @model_validator(mode="before")
    @classmethod
    def _bare_id(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"item_id": value}
        if not isinstance(value, dict | TextItem):
            raise ValueError("must be an item id or an object with item_id, text or attributes")
        return value

    @model_validator(mode="after")
    def _something(self) -> TextItem:
        if self.item_id is None and self.text is None and not self.attributes:
            raise ValueError("give item_id, text or attributes")
        return self

    @property
    def described(self) -> bool:
        """Whether it can be scored without being in the catalogue."""
        return self.text is not None or bool(self.attributes)


def _form(value: Any) -> str:
    return _BY_ID if isinstance(value, str) else _BY_TEXT


_BY_ID, _BY_TEXT = "<id>", "<item>"
Candidate = Annotated[Annotated[ItemId, Tag(_BY_ID)] | Annotated[TextItem, Tag(_BY_TEXT)], Discriminator(_form)]
"""An id stays the string that it is: an object for each of 500 candidates costs more than scoring them."""


def id_of(candidate: str | TextItem) -> str | None:
    """The id that was given, if one was."""
    return candidate if isinstance(candidate, str) else candidate.item_id


class HistoryEvent(TextItem):
    """One past event of the user: an item, the labels given to it, and when."""

    labels: Labels = Field(default_factory=dict, description="event task -> label, e.g. {'like': 1, 'rating': 4}")
    time: Time | None = Field(None, description="unix seconds; None: unknown, order in the list counts")


Omittable = Literal["retrieve", "student", "teacher"]  # stages that can be left out


class _Asked(Message):
    user_id: UserId | None = Field(None, description="a user whose history and attributes the service may know")
    history: list[HistoryEvent] | None = Field(
        None, max_length=MAX_HISTORY, description="past events, oldest first; replaces the stored history"
    )
    user: Attributes = Field(default_factory=dict, description="raw user columns of a user not known to the service")
    context: Context = Field(default_factory=dict, description="raw context columns of this request")
    time: Time | None = Field(None, description="unix seconds of the request; None: now")
    block: list[ItemId] = Field(default_factory=list, max_length=MAX_BLOCK, description="item ids to leave out")
    weights: Weights | None = Field(None, description="event task -> fusion weight; None: those of the release")
    min_score: Number | None = Field(None, description="leave out items that a model scores below this; None: none")
    rerank: Whole | None = Field(
        None, ge=0, le=MAX_CANDIDATES, description="items the teacher scores (at least k; 0: none); None: the service's"
    )
    without: list[Omittable] = Field(
        default_factory=list, max_length=3, description="stages to leave out, besides those that the service leaves out"
    )
    timeout_ms: Whole | None = Field(
        None, ge=1, le=MAX_TIMEOUT_MS, description="time for all stages together; late ones are left out; None: no end"
    )
    explain: Flag = Field(False, description="also return each stage's own score of every returned item")

    def texts(self) -> Iterable[TextItem]:
        return self.history or ()

    @model_validator(mode="after")
    def _total_text(self) -> _Asked:
        if sum(_size(item) for item in self.texts()) > MAX_TEXT_TOTAL:
            raise ValueError(f"texts and attributes of one request may hold at most {MAX_TEXT_TOTAL} characters")
        return self


class RecommendRequest(_Asked):
    """Which items of the whole catalogue should this user see?"""

    k: Whole = Field(10, ge=1, le=MAX_K, description="how many items to return")
    pool: Whole | None = Field(
        None, ge=1, le=MAX_CANDIDATES, description="items the retriever hands on (at least k); None: the service's"
    )
    query: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(few_words)] | None = Field(
        None, description="items whose title holds all these words (or, where switched on, near texts) join the rest"
    )
    exclude_seen: Flag = Field(True, description="leave out items of the history")


class RankRequest(_Asked):
    """In which order should this user see these items?"""

    candidates: list[Candidate] = Field(min_length=1, max_length=MAX_CANDIDATES, description="ids or described items")
    k: Whole | None = Field(None, ge=1, le=MAX_CANDIDATES, description="return only the first k; None: all")

    def texts(self) -> Iterable[TextItem]:
        return [*(self.history or ()), *(c for c in self.candidates if not isinstance(c, str))]


class FeedbackEvent(Message):
    """What a user did with an item, as soon as it is known."""

    item_id: ItemId = Field(description="the item; one that the catalogue does not know is kept for later releases")
    labels: Labels = Field(default_factory=dict, description="event task -> label, e.g. {'like': 1, 'rating': 4}")
    time: Time | None = Field(None, description="unix seconds of the event; None: now")
    request_id: RequestId | None = Field(None, description="request_id of the response that showed the item")
    event_id: RequestId | None = Field(
        None, description="name of the event, unique for the user: told again, it counts once"
    )


class FeedbackRequest(Message):
    """Events of one user, kept all together or not at all."""

    user_id: UserId = Field(description="whose history they enter")
    events: list[FeedbackEvent] = Field(min_length=1, max_length=MAX_HISTORY, description="oldest first")


class FeedbackResponse(Message):
    """The events are on disk, and the user's next request sees them."""

    accepted: int = Field(description="events that are new")
    duplicates: int = Field(description="events told before, or older than all that tells whether they were")
    request_id: str


class NewItem(TextItem):
    """An item to put into the catalogue, or one of it to change; with an id alone its availability is told."""

    item_id: ItemId = Field(description="its id; a known one is changed")
    title: Annotated[str, Field(min_length=1, max_length=MAX_CELL)] | None = Field(
        None, description="what people are shown; None: the title column among the attributes, else the id"
    )
    text: Text | None = Field(None, description="full text; None: the dataset's template over the attributes")
    available: Flag = Field(True, description="false: kept, but not shown until it is told to be available")


class ItemsRequest(Message):
    """What changes in the catalogue, all of it or nothing."""

    items: list[NewItem] = Field(default_factory=list, max_length=MAX_ITEMS, description="to put or to change")
    remove: list[ItemId] = Field(default_factory=list, max_length=MAX_ITEMS, description="ids never to be shown again")

    @model_validator(mode="after")
    def _whole(self) -> ItemsRequest:
        ids = [item.item_id for item in self.items] + self.remove
        if not ids:
            raise ValueError("give items or remove")
        if len(set(ids)) < len(ids):
            raise ValueError("an id may be given once")
        if sum(_size(item) for item in self.items) > MAX_TEXT_TOTAL:
            raise ValueError(f"texts and attributes of one request may hold at most {MAX_TEXT_TOTAL} characters")
        return self


class ItemsResponse(Message):
    """The changes are on disk; every replica follows them soon, new texts once they are encoded."""

    new: int = Field(description="items that the catalogue did not know")
    updated: int = Field(description="items that it knew: text and attributes are replaced as a whole")
    availability: int = Field(description="items given by id alone")
    removed: int = Field(description="known ids that are never shown again, unless they are put again")
    waiting: int = Field(description="items that wait for their texts to be encoded")
    warnings: list[str] = Field(default_factory=list)
    request_id: str


class ItemStatus(Message):
    """What the replica that answers knows of an item."""

    item_id: str
    title: str | None
    status: Literal["served", "waiting", "unavailable", "removed"] = Field(
        description="waiting: a change is on disk and not followed yet; /v1/release says what replicas wait for"
    )


class RankedItem(Message):
    """One line of the answer."""

    item_id: str | None = Field(description="None for a candidate that was given by text alone")
    position: int | None = Field(None, description="0-based position in `candidates` (rank requests)")
    title: str | None = Field(None, description="from the catalogue")
    score: float = Field(description="fused score Σ w·s")
    scores: dict[str, float] = Field(default_factory=dict, description="event task -> probability or label value")
    scored_by: AnsweredBy = Field(description="the stage whose score this is")
    cold: bool = Field(False, description="the catalogue does not know the item")
    stages: dict[str, float] = Field(default_factory=dict, description="stage -> its fused score (explain only)")
    sources: dict[str, int] = Field(
        default_factory=dict, description="source of retrieval -> rank there, from 1 (recommend requests, explain only)"
    )
    propensity: float = Field(1.0, description="probability that this item stands at this place; below 1: exploration")
    policy: list[str] = Field(default_factory=list, description="boosted, pinned, explored by policy (explain only)")


class RankResponse(Message):
    """The order, who made it and how long each stage took."""

    items: list[RankedItem]
    request_id: str
    release_id: str
    bundles: dict[str, str] = Field(description="role (student, teacher) -> bundle id")
    answered_by: AnsweredBy = Field(description="the strongest stage that took part")
    degraded: str | None = Field(None, description="why a stage was left out, if one was")
    timings_ms: dict[str, float] = Field(description="stage -> milliseconds, plus total")
    policy: str | None = Field(None, description="hash of the policy that was applied; None: there is none")
    warnings: list[str] = Field(default_factory=list)


def _kind(body: Any) -> str:
    return "rank" if isinstance(body, RankRequest) or (isinstance(body, dict) and "candidates" in body) else "recommend"


AnyRequest = Annotated[
    Annotated[RankRequest, Tag("rank")] | Annotated[RecommendRequest, Tag("recommend")], Discriminator(_kind)
]
"""With ``candidates`` it is a rank request, without them a recommend request."""


class DryRunRequest(Message):
    """What would another policy change?"""

    policy: dict[str, Any] = Field(description="a whole policy, with the keys of a policy file")
    requests: list[AnyRequest] = Field(
        min_length=1, max_length=10, description="bodies of recommend or rank requests; both policies answer each"
    )


class MovedItem(Message):
    """One item that either policy shows."""

    item_id: str | None
    title: str | None
    before: int | None = Field(description="0-based place under the policy in force; None: not shown")
    after: int | None = Field(description="0-based place under the policy that is tried; None: not shown")
    policy: list[str] = Field(description="what the policy that is tried did: boosted, pinned, explored")


class DryRunAnswer(Message):
    """One request under both policies: items of the new order first, then those that are gone."""

    items: list[MovedItem]
    degraded: str | None = Field(None, description="why a stage was left out, if one was")


class DryRunResponse(Message):
    """What the policy that was tried would change."""

    before: str = Field(description="hash of the policy in force")
    after: str = Field(description="hash of the policy that was tried")
    answers: list[DryRunAnswer]


class ItemHit(Message):
    """One catalogue item found by a title search."""

    item_id: str
    title: str


class TaskInfo(Message):
    """One event task of the release."""

    name: str
    kind: str
    low: float = Field(0.0, description="smallest label")
    high: float = Field(1.0, description="largest label")


class ReleaseInfo(Message):
    """What is served."""

    release_id: str
    bundles: dict[str, str]
    dataset: str = Field(description="name of the dataset it was trained on")
    tasks: list[TaskInfo]
    columns: dict[str, dict[str, str]] = Field(
        default_factory=dict,
        description="what requests may give: context, user, item -> column -> categorical, numeric or text",
    )
    fusion: dict[str, float]
    items: int = Field(description="size of the catalogue")
    told: dict[str, int] | None = Field(
        None,
        description="since the first: items put and removed while serving, waiting to be encoded, and dropped (but for"
        " their availability) because the release is younger and knows them; room: puts that may still come; null: none"
        " are taken",
    )
    items_warning: str | None = Field(
        None, description="what keeps the replica that answers from following items that are put and removed"
    )
    policy: str | None = Field(None, description="hash of the policy in force; None: there is none")
    policy_warning: str | None = Field(None, description="whether something is wrong with the policy file")
    policy_reason: str | None = Field(None, description="what that is, for who edits the file")
    example_users: list[str] = Field(default_factory=list, description="known user ids, if the service shows any")
    served_log: dict[str, int] | None = Field(None, description="answers that this replica wrote down, and dropped")


class ErrorField(Message):
    """Which field is wrong and which rule it breaks."""

    field: str
    problem: str


class ErrorBody(Message):
    """Every answer that is not a success."""

    error: str
    request_id: str
    fields: list[ErrorField] = Field(default_factory=list)


def error_fields(errors: Sequence[Mapping[str, Any]], limit: int = 20) -> list[ErrorField]:
    """Pydantic's error list as fields and rules, without the values that were sent."""
    return [ErrorField(field=_field(e), problem=_rule(e)) for e in errors[:limit]]


def _field(error: Mapping[str, Any]) -> str:
    return "body" if error.get("type") == "json_invalid" else _dotted(error["loc"])


def _rule(error: Mapping[str, Any]) -> str:
    if error.get("type") == "json_invalid":
        return "body must be valid JSON"
    return str(error.get("msg", "invalid")).removeprefix("Value error, ")


def _dotted(loc: Sequence[Any]) -> str:
    # Keys of mappings are chosen by the caller: show plain names only.
    shown = [str(part) for part in loc if part not in (_BY_ID, _BY_TEXT)]
    return ".".join(part if re.fullmatch(r"[\w.\[\]-]{1,64}", part) else "?" for part in shown) or "body"


def _size(item: TextItem) -> int:
    cells = (cell if isinstance(cell, list) else [cell] for cell in item.attributes.values())
    return len(item.text or "") + sum(len(v) for cell in cells for v in cell if isinstance(v, str))
