"""A small synthetic dataset of several shards, and a teacher trained on it for a moment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rayrank.config import parse

TEACHER = {"kind": "teacher", "width": 16, "id_width": 8, "attention_heads": 2}
STUDENT = {"kind": "student", "width": 16, "hidden": 16, "id_width": 8}
ENCODER = {"kind": "tiny", "vocabulary": 200}


@dataclass(frozen=True)
class Small:
    """Folders, and the raw specs that the tests start from."""

    dataset: str
    teacher: str
    raw_teacher: dict[str, Any]
    raw_student: dict[str, Any]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """Built once, in this process, without Ray."""
    from rayrank.on_ray.task import FitTask
    from rayrank.on_ray.train import Workers, run_in_process
    from rayrank.sources.build import build, run_here
    from rayrank.sources.spec import BuildSpec

    folder = Path(tmp_path_factory.mktemp("small"))
    dataset, teacher = str(folder / "dataset"), str(folder / "teacher")
    source = {"kind": "synthetic", "num_rows": 5000, "num_users": 150, "num_items": 80}
    spec = {"source": source, "path": dataset, "rows_per_shard": 1300, "max_sequences": 16}
    build(parse(BuildSpec, spec), run_here, lambda _: None)
    learning = {"epochs": 2, "batch_events": 512, "lanes": 4}
    raw = {"dataset": dataset, "model": TEACHER, "encoder": ENCODER, "learning": learning}
    fit = parse(FitTask, {**raw, "output": teacher})
    run_in_process(fit, Workers(count=0, gpu="never"), lambda _: None)
    student = {"dataset": dataset, "model": STUDENT, "teacher": teacher, "learning": learning}
    return Small(dataset, teacher, raw, student)
