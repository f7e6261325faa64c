"""A small synthetic dataset with a teacher and a student trained for a moment: what evaluate and promote need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from rayrank.config import parse


@dataclass(frozen=True)
class World:
    """Folders of one small run."""

    dataset: str
    teacher: str
    student: str


def quiet(_line: str) -> None:
    """A progress listener that says nothing."""


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Built once per session, in this process, without Ray."""
    from rayrank.on_ray.task import FitTask
    from rayrank.on_ray.train import Workers, run_in_process
    from rayrank.sources.build import build, run_here
    from rayrank.sources.spec import BuildSpec

    folder = Path(tmp_path_factory.mktemp("evidence"))
    made = World(str(folder / "dataset"), str(folder / "teacher"), str(folder / "student"))
    source = {"kind": "synthetic", "num_rows": 4000, "num_users": 150, "num_items": 60}
    build(parse(BuildSpec, {"source": source, "path": made.dataset}), run_here, quiet)
    raw = {"dataset": made.dataset, "learning": {"epochs": 1, "learning_rate": 5e-3}}
    teacher = {"kind": "teacher", "width": 16, "id_width": 8, "attention_heads": 2, "inputs": {"text": False}}
    fit = parse(FitTask, raw | {"output": made.teacher, "model": teacher})
    run_in_process(fit, Workers(count=0, gpu="never"), quiet)
    student = {"kind": "student", "width": 16, "hidden": 16, "inputs": {"text": False}}
    fit = parse(FitTask, raw | {"output": made.student, "model": student})
    run_in_process(fit, Workers(count=0, gpu="never"), quiet)
    return made
