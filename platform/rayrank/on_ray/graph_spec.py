"""What a served graph is made of, and the histories it reads. Light: importing it brings neither Ray nor Serve."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from pydantic import Field

from rayrank.config import Config, ConfigError, DataPath
from rayrank.ranking.drive import Budgets
from rayrank.ranking.flow import FlowSettings, Stage
from rayrank.ranking.follow import ItemSource
from rayrank.ranking.item_log import ItemsSpec, open_items
from rayrank.ranking.release import Release
from rayrank.ranking.served_log import ServedLogSpec
from rayrank.ranking.state import StateSpec, StateStore, open_state
from rayrank.ranking.store import UserStore
from rayrank.sources.dataset import Dataset

ROOM = 8
"""Requests that a stage which can be left out holds per replica."""


class Replicas(Config):
    """How many processes a stage has and what each reserves."""

    ingress: int = Field(1, ge=1, description="replicas of the HTTP ingress (with `fused`: of everything)")
    user: int = Field(1, ge=1, description="replicas of the user stage")
    retrieve: int = Field(1, ge=1, description="replicas of the retriever")
    student: int = Field(1, ge=1, description="replicas of the pre-ranker")
    teacher: int = Field(1, ge=1, description="replicas of the re-ranker")
    num_cpus: float = Field(0.1, gt=0, description="logical CPUs that each replica reserves")
    ongoing: int = Field(32, ge=1, description="requests that one ingress replica works on at once; more get 429")

    def room(self, stage: Stage) -> int:
        """Requests that one replica of a stage works on or holds; more are refused at once and count as missed.

        Nothing replaces the user stage: it has room for all that are let in, so that when everything is full it is
        the door that says so (429) and no stage behind it (503).
        """
        if stage != "user":
            return ROOM
        return max(ROOM, -(-self.ongoing * self.ingress // self.user))


class GraphSpec(Config):
    """What is served and how."""

    releases: DataPath = Field(description="releases folder (its champion is served) or one release")
    fused: bool = Field(False, description="all stages in one process")
    flow: FlowSettings = Field(default_factory=FlowSettings, description="how many candidates each stage passes on")
    budgets: Budgets = Field(default_factory=Budgets, description="longest wait for each stage")
    replicas: Replicas = Field(default_factory=Replicas, description="processes of each stage")
    histories: DataPath | None = Field(
        None, description="sqlite file: cache of the dataset's histories; None: beside temporary files"
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
    name = "replicas.ingress" if spec.fused else "replicas.user"
    writers = spec.replicas.ingress if spec.fused else spec.replicas.user
    if spec.state is not None and spec.state.url is None and writers > 1 and machines > 1:
        rule = f"{writers} replicas on {machines} machines cannot share one file of user state"
        raise ConfigError(name, writers, rule, f"set state.url=redis://…, {name}=1, or state=null")


def open_store(
    release: Release, place: str | None, progress: Callable[[str], None] = lambda _: None
) -> UserStore | None:
    """The histories of the release's dataset, in a temporary file unless ``place`` is given; None without dataset."""
    if release.dataset is None:
        return None
    dataset = Dataset.open(release.dataset)
    name = f"rayrank-histories-{dataset.manifest.data_fingerprint[:16]}.sqlite"
    return UserStore.open(place or str(Path(tempfile.gettempdir()) / name), dataset, progress)
