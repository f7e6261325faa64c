"""What validate calls an error, prepare does not take; and an append does not take it either."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayrank.config import ConfigError, parse
from rayrank.entry import run
from rayrank.pipeline.prepare import PrepareConfig, prepare
from rayrank.pipeline.validate import ValidateConfig, validate
from rayrank.pipeline.verbs import bind
from tests.planted_faults import FAULTS, Tables, clean, put, written


def prepare_here(folder: Path, tables: Tables, **options: Any) -> Any:
    return prepare(parse(PrepareConfig, written(folder, tables) | {"engine": "local"} | options), lambda _: None)


ONLY_SEEN_WHOLE = {
    # what a feature tells of a label takes many rows and every label to see
    "feature equals label", "feature tells label", "category tells label", "missing tells label",
    "item category tells label", "item number equals label", "user category tells label",
    "user feature equals class", "user number equals class",
    # the future of a row is in other files and parts than the row
    "time after the event", "time to next event", "count of whole log",
    # an attribute is compared with statistics of the whole log
    "item's whole mean", "user's whole count",
}  # fmt: skip
"""Errors that prepare does not see, because only a look at the whole log tells them."""

ERRORS = [f for f in FAULTS if f[2] == "error"]


@pytest.mark.parametrize("fault", ERRORS, ids=[f[0] for f in ERRORS])
def test_prepare_refuses_what_validate_calls_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: tuple[Any, ...]
) -> None:
    name, plant, _, where, _, row, rule, _ = fault
    tables = clean()
    plant(tables)
    (tmp_path / "prepare.yaml").write_text(json.dumps(written(tmp_path, tables) | {"engine": "local"}))
    code = run(bind("prepare"), [str(tmp_path / "prepare.yaml")], "prepare")
    said = capsys.readouterr().err.splitlines()[-1]
    if name in ONLY_SEEN_WHOLE:
        assert (code, (tmp_path / "out/manifest.json").exists()) == (0, True)
        return
    assert code == 2
    assert not list((tmp_path / "out").rglob("*")), "no output is left"
    assert said.startswith("error: ")
    assert where.split(".")[-1] in said
    assert f"(row {row})" in said or not where.startswith("interactions") or "column is missing" in rule
    assert "; fix: " in said


def test_times_of_any_unit_are_no_error(tmp_path: Path) -> None:
    """Under ``auto`` no unit can be wrong: a time that is out of the way is a warning, and prepare takes it."""
    tables = clean()
    tables.schema += "time_unit: auto\n"
    put("events", 0, timestamp=1000)(tables)
    result = validate(parse(ValidateConfig, written(tmp_path, tables)), lambda _: None)
    (finding,) = [f for f in result.findings if "1971" in f.rule]
    assert (finding.severity, finding.where, finding.row) == ("warning", "interactions.timestamp", 0)
    assert prepare_here(tmp_path, tables).written


def test_without_times_no_time_is_refused(tmp_path: Path) -> None:
    tables = clean()
    tables.schema += "timestamp: null\n"
    put("events", 0, timestamp=-5)(tables)
    assert prepare_here(tmp_path, tables).written


@pytest.mark.parametrize("split", ["user", "time"])
def test_a_threshold_takes_any_finite_number_and_missing_labels_stay(tmp_path: Path, split: str) -> None:
    tables = clean()
    tables.schema = tables.schema.replace("column: click}", "column: click, at_least: 3}")
    tables.schema += f"split: {{kind: {split}}}\n"
    put("events", 3, click=-7.0)(tables)
    put("events", 4, click=9.0)(tables)
    put("events", 5, click=None)(tables)
    put("events", 6, click=float("nan"))(tables)
    manifest = prepare_here(tmp_path, tables).manifest
    assert manifest.counts.events == 800


def test_an_append_refuses_the_same_and_leaves_the_dataset(tmp_path: Path) -> None:
    tables = clean()
    tables.schema += "split: {kind: boundary, valid_from: 1700200000, test_from: 1700300000}\n"
    before = prepare_here(tmp_path, tables).manifest
    late = clean()
    late.schema = tables.schema
    for event in late.events:
        event["timestamp"] += 600 * len(late.events)
    put("events", 11, click=2.0)(late)
    with pytest.raises(ConfigError, match=r"got 2.0; a label of task 'click' must be 0 or 1 \(row 811\)"):
        prepare_here(tmp_path, late, append=True)
    assert json.loads((tmp_path / "out/manifest.json").read_text())["build"] == before.build
    put("events", 11, click=1.0)(late)
    assert prepare_here(tmp_path, late, append=True).manifest.counts.events == 1600
