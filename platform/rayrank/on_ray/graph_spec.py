"""What a served graph is made of, and the histories it reads. Light: importing it brings neither Ray nor Serve."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from rayrank.config import Config, ConfigError, DataPath
from rayrank.ranking.drive import Budgets
from rayrank.ranking.flow import FlowSettings, Stage
from rayrank.ranking.follow import ItemSource
from rayrank.ranking.item_log import ItemsSpec, open_items
from rayrank.ranking.private import private_folder
from rayrank.ranking.release import Release
from rayrank.ranking.served_log import ServedLogSpec
from rayrank.ranking.state import StateError, StateSpec, StateStore, open_state
from rayrank.ranking.store import UserStore
from rayrank.sources.dataset import Dataset

Part = Literal["ingress", "user", "retrieve", "student", "teacher"]
PARTS: tuple[Part, ...] = ("ingress", "user", "retrieve", "student", "teacher")


class Range(Config):
    """Replicas that Serve starts and ends by load."""

    min: int = Field(1, ge=1, description="replicas without load")
    max: int = Field(ge=1, description="replicas at most")
    target: float | None = Field(
        None, gt=0, description="ongoing requests per replica that are aimed at; None: half of what a replica holds"
    )
    up_after_s: float = Field(10.0, ge=0, description="more replicas after so long above the target, seconds")
    down_after_s: float = Field(300.0, ge=0, description="fewer replicas after so long below the target, seconds")

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) must not be above max ({self.max})")
        return self


def _form(value: object) -> str:
    return "range" if isinstance(value, Mapping | Range) else "number"


Size = Annotated[
    Annotated[int, Field(ge=1), Tag("number")] | Annotated[Range, Tag("range")],
    Discriminator(_form),  # else a mistake in a range would be reported as "not a number"
]
"""Of a stage: so many replicas, or as many as the load wants."""


class Replicas(Config):
    """How many processes a stage has and what each reserves."""

    ingress: Size = Field(1, description="replicas of the HTTP ingress (with `fused`: of everything), or a range")
    user: Size = Field(1, description="replicas of the user stage, or a range")
    retrieve: Size = Field(1, description="replicas of the retriever, or a range")
    student: Size = Field(1, description="replicas of the pre-ranker, or a range")
    teacher: Size = Field(1, description="replicas of the re-ranker, or a range")
    num_cpus: float = Field(0.1, gt=0, description="logical CPUs that each replica reserves")
    ongoing: int = Field(32, ge=1, description="requests that one ingress replica works on at once; more get 429")

    stage_ongoing: int = Field(
        8, ge=1, description="requests that a replica of a stage works on or holds; beyond them a stage is left out"
    )

    @model_validator(mode="after")
    def _reachable(self) -> Replicas:
        for part in PARTS:
            size, holds = getattr(self, part), self.holds(part)
            if isinstance(size, Range) and size.target is not None and size.target >= holds:
                rule = f"{part}.target ({size.target:g}) must be below the {holds} requests that a replica holds"
                raise ValueError(f"{rule}, else it never scales up")
        return self

    def least(self, part: Part) -> int:
        """Replicas without load."""
        size = getattr(self, part)
        return size.min if isinstance(size, Range) else int(size)

    def most(self, part: Part) -> int:
        """Replicas under load."""
        size = getattr(self, part)
        return size.max if isinstance(size, Range) else int(size)

    def holds(self, part: Part) -> int:
        """Requests that one replica works on or holds."""
        return self.ongoing if part == "ingress" else self.room(part)

    def serve_options(self, part: Part) -> dict[str, Any]:
        """What Ray Serve is told about the number of replicas."""
        size = getattr(self, part)
        if not isinstance(size, Range):
            return {"num_replicas": size}
        scaling = {
            "min_replicas": size.min,
            "initial_replicas": size.min,
            "max_replicas": size.max,
            "target_ongoing_requests": size.target or self.holds(part) / 2,
            "upscale_delay_s": size.up_after_s,
            "downscale_delay_s": size.down_after_s,
        }
        return {"num_replicas": None, "autoscaling_config": scaling}

    def room(self, stage: Stage) -> int:
        """Requests that one replica of a stage works on or holds; more are refused at once and count as missed.

        Nothing replaces the user stage: it has room for all that are let in, so that when everything is full it is
        the door that says so (429) and no stage behind it (503).
        """
        if stage != "user":
            return self.stage_ongoing
        return max(self.stage_ongoing, -(-self.ongoing * self.most("ingress") // self.least("user")))


class Batching(Config):
    """Waiting requests that a replica scores in one call of the model, at most; nobody is waited for. 1: off."""

    student: int = Field(8, ge=1, description="requests in one call of the student")
    teacher: int = Field(8, ge=1, description="requests in one call of the teacher")

    def of(self, stage: str) -> int:
        """Requests at a time."""
        return int(getattr(self, stage, 1))


class GraphSpec(Config):
    """What is served and how."""

    releases: DataPath = Field(description="releases folder (its champion is served) or one release")
    fused: bool = Field(False, description="all stages in one process")
    flow: FlowSettings = Field(default_factory=FlowSettings, description="how many candidates each stage passes on")
    budgets: Budgets = Field(default_factory=Budgets, description="longest wait for each stage")
    replicas: Replicas = Field(default_factory=Replicas, description="processes of each stage")
    batching: Batching = Field(
        default_factory=Batching, description="waiting requests that are scored together; 1: each by itself"
    )
    histories: DataPath | None = Field(
        None, description="sqlite file: cache of the dataset's histories; None: in a private folder of temporary files"
    )
    policy: DataPath | None = Field(None, description="policy file (YAML or JSON), followed while serving; None: none")
    state: StateSpec | None = Field(
        default_factory=StateSpec, description="where events that users send are kept; null: none are taken"
    )
    items: ItemsSpec | None = Field(
        default_factory=ItemsSpec,
        description="where items put and removed while serving are kept; null: none are taken",
    )
    served_log: ServedLogSpec | None = Field(
        None, description="where answers are written down, to train on them; null: nowhere"
    )
    now: int | None = Field(None, description="unix seconds taken for the present (demos on old data); None: the clock")
    example_users: int = Field(
        0, ge=0, le=100, description="known user ids that /v1/release shows to whoever may ask it; 0: none"
    )
    token_file: DataPath | None = Field(
        None, description="file with the bearer token that HTTP requests must carry; None: no request needs one"
    )


def processes_of(spec: GraphSpec, release: Release) -> tuple[Part, ...]:
    """Parts of the graph that have replicas of their own: with ``fused`` only the ingress; no stage that is left out.

    The teacher is there as long as items are taken, whose texts it encodes.
    """
    if spec.fused:
        return ("ingress",)
    teacher = release.teacher is not None and ("teacher" not in spec.flow.without or spec.items is not None)
    return tuple(p for p in PARTS if (teacher if p == "teacher" else p not in spec.flow.without))


def open_user_data(spec: GraphSpec, release: Release) -> tuple[UserStore | None, StateStore | None]:
    """The histories of the release's dataset and what users told since.

    Raises:
        ConfigError: a file cannot be made, or the server's settings lose what it acknowledges.
    """
    state = None if spec.state is None else open_state(spec.state, spec.releases)
    loaded = spec.state is not None and spec.state.loaded
    return None if loaded else open_store(release, spec.histories), state


def open_item_source(spec: GraphSpec) -> ItemSource | None:
    """The log of items that the service takes; None: it takes none.

    Raises:
        ConfigError: the folder cannot be written.
    """
    return None if spec.items is None else ItemSource(open_items(spec.items, spec.releases), spec.items)


def folding(spec: GraphSpec) -> GraphSpec:
    """The spec with the files of the log that are there now as those to fold: the same for all replicas of a graph.

    Raises:
        ConfigError: the folder cannot be written.
    """
    source = open_item_source(spec)
    if source is None or source.spec.folded is not None:
        return spec
    items = source.spec.model_copy(update={"folded": source.log.last()})
    return spec.model_copy(update={"items": items})


def check_machines(spec: GraphSpec, machines: int) -> None:
    """Refuse a file as the state of user stages that may run on several machines, each with its own disk.

    Raises:
        ConfigError: more than one replica writes, and there is more than one machine.
    """
    part: Part = "ingress" if spec.fused else "user"
    name, writers = f"replicas.{part}", spec.replicas.most(part)
    if spec.state is not None and spec.state.url is None and writers > 1 and machines > 1:
        rule = f"{writers} replicas on {machines} machines cannot share one file of user state"
        raise ConfigError(name, writers, rule, f"set state.url=redis://…, {name}=1, or state=null")


def check_loaded(spec: GraphSpec, machines: int) -> None:
    """Refuse ``state.loaded`` of a store into which nothing was loaded: every user would be served as a stranger.

    Raises:
        ConfigError: the store answers and holds no mark of ``load_state``.
    """
    if spec.state is None or not spec.state.loaded or (spec.state.url is None and machines > 1):
        return  # the last: the file may lie on another machine
    with suppress(StateError):  # down: users are served without history until it is back, and told so
        store = open_state(spec.state, spec.releases, read_only=True)
        try:
            marks = store.marks()
        finally:
            store.close()
        if not marks:
            fix = "run load_state into it, correct state.path, state.url or state.prefix, or set state.loaded=false"
            raise ConfigError("state.loaded", True, "load_state has put nothing into this store", fix)


def open_store(
    release: Release, place: str | None, progress: Callable[[str], None] = lambda _: None
) -> UserStore | None:
    """The histories of the release's dataset, in a private folder unless ``place`` is given; None without dataset.

    Raises:
        ConfigError: the cache cannot be made, or the private folder is not private.
    """
    if release.dataset is None:
        return None
    dataset = Dataset.open(release.dataset)
    name = f"histories-{dataset.manifest.data_fingerprint[:16]}.sqlite"
    return UserStore.open(place or private_folder("histories") / name, dataset, progress)
