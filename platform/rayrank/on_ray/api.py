"""The HTTP face of the ranking service: routes, limits and errors. Ranking itself is behind :class:`Service`.

No answer carries a stack trace or repeats what was sent; every answer carries a request id.
"""

# FastAPI reads the signatures below at run time: their annotations must not be postponed.
import asyncio
import logging
import re
import uuid
from collections.abc import MutableMapping
from typing import Annotated, Any, Protocol

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi_offline import FastAPIOffline
from pydantic import AfterValidator
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from rayrank.messages import (
    DryRunRequest,
    DryRunResponse,
    ErrorBody,
    ErrorField,
    FeedbackRequest,
    FeedbackResponse,
    ItemHit,
    ItemsRequest,
    ItemsResponse,
    ItemStatus,
    RankRequest,
    RankResponse,
    RecommendRequest,
    ReleaseInfo,
    error_fields,
)
from rayrank.on_ray.bearer import CHALLENGE, allowed, declare
from rayrank.on_ray.changes import Changes
from rayrank.on_ray.pool import BusyError
from rayrank.ranking.desk import BacklogError, FullError
from rayrank.ranking.flow import StageError
from rayrank.ranking.graph import RequestError
from rayrank.wording import few_words

MAX_BODY = 8 * 2**20
"""Bytes of a request body."""
BODY_S = 30.0
"""Longest wait for all of a request body, seconds: one that stalls must not keep its place for ever."""

_log = logging.getLogger(__name__)
_Answers = dict[int | str, dict[str, Any]]
_WRONG: _Answers = {422: {"model": ErrorBody, "description": "the request breaks a rule; `fields` say which"}}
_UNAVAILABLE: _Answers = {503: {"model": ErrorBody, "description": "what nothing replaces gives no answer"}}
_NO_ROOM: _Answers = {507: {"model": ErrorBody, "description": "as many items were put as a running service may hold"}}
_UNKNOWN: _Answers = {404: {"model": ErrorBody, "description": "nothing is known of the item"}}
_FULL: _Answers = {
    429: {"model": ErrorBody, "description": "too many requests at once; `retry-after` says when to try again"}
}
_LOOKED_UP: _Answers = {**_FULL, **_UNAVAILABLE}
PathId = Annotated[str, Path(min_length=1, max_length=256)]
_ASKED: _Answers = {
    **_WRONG,
    408: {"model": ErrorBody, "description": f"the body was not there after {BODY_S:g} s"},
    411: {"model": ErrorBody, "description": "a body without content-length"},
    413: {"model": ErrorBody, "description": f"a body of more than {MAX_BODY} bytes"},
    **_LOOKED_UP,
}


class Service(Protocol):
    """What the routes need."""

    async def answer(self, request: RankRequest | RecommendRequest, request_id: str) -> RankResponse:
        """Rank or recommend."""
        ...

    async def dry_run(self, asked: DryRunRequest, request_id: str) -> DryRunResponse:
        """Requests under two policies."""
        ...

    async def tell(self, request: FeedbackRequest, request_id: str) -> FeedbackResponse:
        """Keep what a user did; on disk when it returns."""
        ...

    @property
    def changes(self) -> Changes:
        """What takes items."""
        ...

    async def ready(self) -> None:
        """Return when every stage has answered a first request.

        Raises:
            StageError: one has not yet.
        """
        ...

    async def describe(self) -> ReleaseInfo:
        """What is served; waits for nothing."""
        ...

    async def examples(self) -> list[str]:
        """Some known user ids, where the service shows any."""
        ...

    async def search(self, query: str, limit: int) -> list[ItemHit]:
        """Items by title."""
        ...


def build_api(service: Service, page: str | None, token: str | None = None) -> FastAPI:
    """The application with all routes.

    ``page`` is the playground's HTML, served at ``/``. Every route but that and health needs ``token``, if
    there is one.
    """
    # The pages of /docs come from here: where the service runs there may be no way to a CDN.
    api = FastAPIOffline(redoc_url=None, title="rayrank", description="Ranks and recommends with a served release.")
    _add_routes(api, service, page)
    _add_item_routes(api, service)
    _add_errors(api, token)
    return api


def _add_routes(api: FastAPI, service: Service, page: str | None) -> None:
    @api.post("/v1/recommend", response_model=RankResponse, responses=_ASKED)
    async def recommend(body: RecommendRequest, request: Request) -> Response:
        """The k best items of the catalogue for a user id or an inline history."""
        return _answer(await service.answer(body, request.state.request_id))

    @api.post("/v1/rank", response_model=RankResponse, responses=_ASKED)
    async def rank(body: RankRequest, request: Request) -> Response:
        """The given candidates in the order this user should see them."""
        return _answer(await service.answer(body, request.state.request_id))

    @api.post("/v1/policy/dry-run", response_model=DryRunResponse, responses=_ASKED)
    async def dry_run(body: DryRunRequest, request: Request) -> Response:
        """What another policy would change in the answers to these requests; changes nothing."""
        return _json(await service.dry_run(body, request.state.request_id))

    @api.post("/v1/feedback", response_model=FeedbackResponse, responses=_ASKED)
    async def feedback(body: FeedbackRequest, request: Request) -> Response:
        """What a user did with items: on disk when answered, and seen by the user's next request."""
        return _json(await service.tell(body, request.state.request_id))

    @api.head("/v1/health", include_in_schema=False)  # balancers that want the status alone
    @api.get("/v1/health", responses=_UNAVAILABLE)
    async def health() -> dict[str, str]:
        """Whether every stage has answered a first request, and with which release."""
        await service.ready()
        info = await service.describe()
        names = ("policy", "policy_warning", "items_warning")
        told = {name: value for name in names if (value := getattr(info, name)) is not None}
        bundles = {f"{role}_id": bundle_id for role, bundle_id in info.bundles.items()}
        return {"status": "ok", "release_id": info.release_id, **bundles, **told}

    @api.get("/v1/release", response_model=ReleaseInfo, responses=_LOOKED_UP)
    async def release() -> Response:
        """The release: bundles, tasks, fusion weights."""
        info = await service.describe()
        return _json(info.model_copy(update={"example_users": await service.examples()}))

    @api.get("/", include_in_schema=False)
    async def playground() -> Response:
        """The playground, or where to find the documentation."""
        return HTMLResponse(page) if page else JSONResponse({"documentation": "/docs"})


def _add_item_routes(api: FastAPI, service: Service) -> None:
    @api.get("/v1/items", response_model=list[ItemHit], responses={**_WRONG, **_LOOKED_UP})
    async def items(
        query: Annotated[str, Query(max_length=200), AfterValidator(few_words)] = "",
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> list[ItemHit]:
        """Items whose title holds every word of the query, most popular first."""
        return await service.search(query, limit)

    @api.post("/v1/items", response_model=ItemsResponse, responses={**_ASKED, **_NO_ROOM}, status_code=202)
    async def tell_items(body: ItemsRequest, request: Request) -> Response:
        """Put, change or remove items: on disk when answered, followed by all replicas once texts are encoded."""
        return _json(await service.changes.tell(body, request.state.request_id), 202)

    @api.delete("/v1/items/{item_id:path}", response_model=ItemsResponse, responses=_ASKED, status_code=202)
    async def remove_item(item_id: PathId, request: Request) -> Response:
        """Never show an item again, unless it is put again."""
        return _json(await service.changes.tell(ItemsRequest(remove=[item_id]), request.state.request_id), 202)

    @api.get("/v1/items/{item_id:path}", response_model=ItemStatus, responses={**_WRONG, **_UNKNOWN, **_LOOKED_UP})
    async def item(item_id: PathId) -> Response:
        """Whether an item is served, waiting, unavailable or removed."""
        found = await service.changes.status(item_id)
        if found is None:
            raise HTTPException(404, "no such item")
        return _json(found)


def _add_errors(api: FastAPI, token: str | None) -> None:
    api.add_middleware(_Guard, token=token)
    if token is not None:
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
        declare(api, {"description": "no bearer token, or a wrong one", "content": content})

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        kind = request.headers.get("content-type", "")
        if request.method == "POST" and not kind.partition(";")[0].strip().lower().endswith("json"):
            problem = "must be a JSON object, sent with the header content-type: application/json"
            return _error(request, 422, "invalid request", [ErrorField(field="body", problem=problem)])
        return _error(request, 422, "invalid request", [_without_body(f) for f in error_fields(error.errors())])

    @api.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return _error(request, 422, "invalid request", error.fields)

    @api.exception_handler(StageError)
    async def unavailable(request: Request, error: StageError) -> Response:
        return _error(request, 503, str(error), headers={"retry-after": "1"})

    @api.exception_handler(BusyError)
    async def busy(request: Request, error: BusyError) -> Response:
        return _error(request, 429, str(error), headers={"retry-after": str(error.retry_s)})

    @api.exception_handler(BacklogError)
    async def backlog(request: Request, error: BacklogError) -> Response:
        return _error(request, 429, str(error), headers={"retry-after": str(error.retry_s)})

    @api.exception_handler(FullError)
    async def full(request: Request, error: FullError) -> Response:
        return _error(request, 507, str(error))

    @api.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        return _error(request, error.status_code, str(error.detail), headers=dict(error.headers or {}))


class _Guard:
    """Request id (Serve puts it into the headers too), token, body limits, and a last net under everything.

    Plain ASGI: Starlette's function middleware starts a task and two streams for every request.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, started = Request(scope), False
        asked = request.headers.get("x-request-id", "")
        request.state.request_id = asked if re.fullmatch(r"[\w-]{1,64}", asked) else uuid.uuid4().hex

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            started = True
            await send(message)

        refusal = _refusal(request, self._token)
        try:
            await (refusal or self._app)(scope, _in_time(receive), watched)
        except Exception as error:
            # The message could repeat what was sent, so only the kind of error is written down.
            _log.error("request %s: unexpected %s", request.state.request_id, type(error).__name__)
            if not started:
                await _error(request, 500, "unexpected error")(scope, receive, send)


def _in_time(receive: Receive) -> Receive:
    """``receive``, which raises a 408 where the body is not there ``BODY_S`` after its first part was asked for."""
    end, whole = None, False  # type: float | None, bool

    async def part() -> MutableMapping[str, Any]:
        nonlocal end, whole
        if whole:
            return await receive()
        if end is None:
            end = asyncio.get_running_loop().time() + BODY_S
        try:
            async with asyncio.timeout_at(end):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, f"the body was not there after {BODY_S:g} s", {"connection": "close"}) from None
        whole = not message.get("more_body", False)
        return message

    return part


def _refusal(request: Request, token: str | None) -> Response | None:
    if token is not None and not allowed(request, token):
        return _error(request, 401, "a bearer token is needed: authorization: Bearer …", headers=CHALLENGE)
    length = request.headers.get("content-length", "0")
    if "transfer-encoding" in request.headers:
        return _error(request, 411, "a body needs a content-length")
    if not re.fullmatch(r"[0-9]{1,12}", length) or int(length) > MAX_BODY:
        return _error(request, 413, f"the body may hold at most {MAX_BODY} bytes")
    return None


def _without_body(field: ErrorField) -> ErrorField:
    return ErrorField(field=field.field.removeprefix("body.").removeprefix("query."), problem=field.problem)


def _error(
    request: Request,
    status: int,
    error: str,
    fields: list[ErrorField] | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    body = ErrorBody(error=error, request_id=request.state.request_id, fields=fields or [])
    return Response(body.model_dump_json(), status, headers, "application/json")


def _answer(message: RankResponse) -> Response:
    """Balancers and dashboards count answers by stage without reading bodies."""
    headers = {"x-answered-by": message.answered_by, "x-degraded": str(message.degraded is not None).lower()}
    return Response(message.model_dump_json(), headers=headers, media_type="application/json")


def _json(message: Any, status: int = 200) -> Response:
    return Response(message.model_dump_json(), status, media_type="application/json")
