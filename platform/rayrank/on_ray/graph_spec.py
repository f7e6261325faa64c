"""What a served graph is made of, and the histories it reads. Light: importing it brings neither Ray nor Serve."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from pydantic import Field

from rayrank.config import Config, DataPath
from rayrank.ranking.drive import Budgets
from rayrank.ranking.flow import FlowSettings
from rayrank.ranking.release import Release
from rayrank.ranking.store import UserStore
from rayrank.sources.dataset import Dataset


class Replicas(Config):
    """How many processes a stage has and what each reserves."""

    ingress: int = Field(1, ge=1, description="replicas of the HTTP ingress (with `fused`: of everything)")
    user: int = Field(1, ge=1, description="replicas of the user stage")
    retrieve: int = Field(1, ge=1, description="replicas of the retriever")
    student: int = Field(1, ge=1, description="replicas of the pre-ranker")
    teacher: int = Field(1, ge=1, description="replicas of the re-ranker")
    num_cpus: float = Field(0.1, gt=0, description="logical CPUs that each replica reserves")
    ongoing: int = Field(32, ge=1, description="requests that one ingress replica works on at once; more get 429")


class GraphSpec(Config):
    """What is served and how."""

    releases: DataPath = Field(description="releases folder (its champion is served) or one release")
    fused: bool = Field(False, description="all stages in one process")
    flow: FlowSettings = Field(default_factory=FlowSettings, description="how many candidates each stage passes on")
    budgets: Budgets = Field(default_factory=Budgets, description="longest wait for each stage")
    replicas: Replicas = Field(default_factory=Replicas, description="processes of each stage")
    histories: DataPath | None = Field(None, description="sqlite file of user histories; None: beside temporary files")
    policy: DataPath | None = Field(None, description="policy file (YAML or JSON), followed while serving; None: none")
    now: int | None = Field(None, description="unix seconds taken for the present (demos on old data); None: the clock")
    example_users: int = Field(20, ge=0, le=100, description="known user ids that /v1/release shows; 0: none")


def open_store(
    release: Release, place: str | None, progress: Callable[[str], None] = lambda _: None
) -> UserStore | None:
    """The histories of the release's dataset, in a temporary file unless ``place`` is given; None without dataset."""
    if release.dataset is None:
        return None
    dataset = Dataset.open(release.dataset)
    name = f"rayrank-histories-{dataset.manifest.data_fingerprint[:16]}.sqlite"
    return UserStore.open(place or str(Path(tempfile.gettempdir()) / name), dataset, progress)
