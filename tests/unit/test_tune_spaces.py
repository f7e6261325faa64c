"""Every search space names fields that exist and samples values that they take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayrank.config import ConfigError, load
from rayrank.on_ray.goal import resolved
from rayrank.on_ray.search_spec import SearchSpec, number_of_trials
from rayrank.on_ray.space import check_space, parse_space, read_space
from rayrank.pipeline.distill import DistillConfig
from rayrank.pipeline.prepare import PrepareConfig
from rayrank.pipeline.tune import WEIGHTS, TuneConfig
from rayrank.sources.config import open_source

ROOT = Path(__file__).resolve().parents[2]
SPACES = sorted((ROOT / "tune_spaces").glob("*.yaml"))
CONFIGS = sorted((ROOT / "jobs" / "configs").glob("*/tune*.yaml"))
BASE = DistillConfig(dataset="d", output="o", labels="l", teacher="t")


@pytest.mark.parametrize("path", SPACES, ids=lambda p: p.stem)
def test_every_path_and_sample_fits_the_config(path: Path) -> None:
    check_space(read_space(str(path)), BASE, path.name)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.relative_to(p.parents[1]).as_posix())
def test_tune_varies_the_distillation_of_the_same_dataset(path: Path) -> None:
    tune, distill = load(TuneConfig, path), load(DistillConfig, path.parent / "distill.yaml")
    assert tune.distill == distill
    space = read_space(str(ROOT / str(tune.space)))
    assert number_of_trials(tune.search, space, tune.trials, str(tune.space)) == tune.trials
    schema = open_source(load(PrepareConfig, path.parent / "prepare.yaml").source).schema
    weighted = {name.removeprefix(WEIGHTS) for name in space if name.startswith(WEIGHTS)}
    assert weighted <= {task.name for task in schema.tasks}
    resolved(tune.search.goal, distill.learning, schema)


@pytest.mark.parametrize(("name", "kind"), [("distill_grid", "grid"), ("distill_population", "pbt")])
def test_spaces_for_one_way_of_searching_go_with_it(name: str, kind: str) -> None:
    part = {"algorithm": {"kind": "grid"}} if kind == "grid" else {"scheduler": {"kind": "pbt"}}
    space = read_space(str(ROOT / "tune_spaces" / f"{name}.yaml"))
    assert number_of_trials(SearchSpec.model_validate(part), space, None, name) == (12 if kind == "grid" else 8)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"objective.wieghts.like": {"kind": "uniform", "low": 0.1, "high": 1}}, "unknown key"),
        ({"objective.distillation.temperature": {"kind": "uniform", "low": -1.0, "high": 1}}, "greater than 0"),
        ({"learning.epochs": {"kind": "uniform", "low": 1.5, "high": 2.5}}, "valid integer"),
        ({"model.kind": {"kind": "choice", "values": ["student", "techer"]}}, "kind"),
        ({"model.hidden": {"kind": "choice", "values": [32, "wide"]}}, "valid integer"),
        ({"model.hidden": {"kind": "choice", "values": [32, "64"]}}, "kept as it is"),
    ],
)
def test_what_does_not_fit_is_named(raw: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_space(parse_space(raw, "space.yaml"), BASE, "space.yaml")
    assert expected in str(caught.value)
    assert next(iter(raw)) in caught.value.path


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({}, "at least one"),
        ({"a": {"kind": "gauss", "low": 1}}, "uniform"),
        ({"a": {"kind": "uniform", "low": 2, "high": 1}}, "low must be less than high"),
        ({"a": {"kind": "loguniform", "low": 0, "high": 1}}, "greater than 0"),
        ({"a": {"kind": "choice", "values": []}}, "at least 1"),
        ({"a": 3}, "sampler"),
    ],
)
def test_malformed_samplers_are_refused(raw: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_space(raw, "space.yaml")
    assert expected in str(caught.value)


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        read_space(str(tmp_path / "none.yaml"))
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="must be a mapping"):
        read_space(str(tmp_path / "list.yaml"))
