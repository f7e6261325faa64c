"""Config loading: what is accepted, and that every mistake names path, value, rule and fix."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from rayrank.config import Config, ConfigError, DataPath, digest, load, parse, path_fields, replace, to_yaml
from rayrank.schema import DatasetSchema


class Adam(Config):
    kind: Literal["adam"] = "adam"
    learning_rate: float = Field(1e-3, gt=0, description="step size")


class Sgd(Config):
    kind: Literal["sgd"] = "sgd"
    learning_rate: float = Field(1e-1, gt=0, description="step size")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum")


class Source(Config):
    folder: DataPath = Field(description="where the files are")
    extras: tuple[DataPath, ...] = Field((), description="more files")


class Job(Config):
    source: Source = Field(description="what is read")
    out: DataPath = Field("runs/out", description="what is written")
    labels: DataPath | None = Field(None, description="teacher labels")
    name: str = Field("job", description="shown in tables")
    mode: Literal["fast", "exact"] = Field("fast", description="how")
    optimizer: Annotated[Adam | Sgd, Field(discriminator="kind")] = Field(default_factory=Adam, description="optimizer")
    by_name: dict[str, Source] = Field(default_factory=dict, description="named sources")
    low: int = Field(0, description="low end")
    high: int = Field(1, description="high end")

    @model_validator(mode="after")
    def _ordered(self) -> Job:
        if self.low > self.high:
            raise ValueError("low must not exceed high")
        return self


GOOD = {"source": {"folder": "data"}}
TASK = {"kind": "binary", "name": "like", "column": "rating"}


def mistake(raw: dict, cls: type[Config] = Job) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse(cls, raw, origin="job.yaml")
    return caught.value


def test_defaults_overrides_and_yaml_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("source: {folder: data}\noptimizer: {kind: sgd, learning_rate: 1e-3}\n")
    job = load(Job, file, ["optimizer.momentum=0.5", "by_name.a.folder=x", "name=", "high=7"])
    assert job.optimizer == Sgd(learning_rate=0.001, momentum=0.5)
    assert (job.by_name["a"].folder, job.name, job.high) == ("x", "", 7)
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(job))
    assert load(Job, again) == job
    assert digest(load(Job, again)) == digest(job) != digest(replace(job, {"high": 8}))


@pytest.mark.parametrize(
    ("raw", "path", "rule", "fix"),
    [
        (
            {"source": {"foldr": "x"}},
            "source.foldr",
            "unknown key; known keys: extras, folder",
            "did you mean 'folder'?",
        ),
        ({**GOOD, "optimiser": {}}, "optimiser", "unknown key", "did you mean 'optimizer'?"),
        ({**GOOD, "zzz": 1}, "zzz", "unknown key", "remove it"),
        ({}, "source", "required key is missing", "add 'source: …' (what is read)"),
        ({"source": {}}, "source.folder", "required key is missing", "add 'source.folder: …' (where the files are)"),
        ({**GOOD, "optimizer": {"kind": "adma"}}, "optimizer.kind", "unknown 'kind'", "did you mean 'adam'?"),
        ({**GOOD, "optimizer": {"learning_rate": 1}}, "optimizer.kind", "'kind' is missing", "one of adam, sgd"),
        ({**GOOD, "optimizer": {"kind": "sgd", "momentm": 1}}, "optimizer.momentm", "unknown key", "'momentum'"),
        ({**GOOD, "optimizer": {"kind": "sgd", "momentum": 2}}, "optimizer.momentum", "less than 1", "momentum=…"),
        ({**GOOD, "mode": "fats"}, "mode", "'fast' or 'exact'", "did you mean 'fast'?"),
        ({**GOOD, "name": False}, "name", "valid string", "put it in quotes"),
        ({**GOOD, "low": 3}, "(root)", "low must not exceed high", "agree"),
        ({**GOOD, "by_name": {"a": {"foldr": "x"}}}, "by_name.a.foldr", "unknown key", "did you mean 'folder'?"),
        ({"source": {"folder": "x", "extras": ["a", 3]}}, "source.extras.1", "valid string", "quotes"),
    ],
)
def test_a_mistake_names_path_rule_and_fix(raw: dict, path: str, rule: str, fix: str) -> None:
    error = mistake(raw)
    assert error.path == f"job.yaml: {path}"
    assert rule in error.rule
    assert fix in error.fix


@pytest.mark.parametrize(
    ("task", "path", "fix"),
    [
        ({**TASK, "kind": "binry"}, "tasks.0.kind", "did you mean 'binary'?"),
        ({"kind": "binary", "name": "like", "colum": "rating"}, "tasks.0.colum", "did you mean 'column'?"),
        ({"kind": "binary", "name": "like"}, "tasks.0.column", "interaction column that holds the label"),
        ({**TASK, "at_least": "four"}, "tasks.0.at_least", "tasks.0.at_least=…"),
        ({"kind": "multiclass", "name": "age", "column": "age", "classes": ["a"]}, "tasks.0.classes", "fits"),
        ("like", "tasks.0", "tasks.0.kind: …"),
    ],
)
def test_the_deepest_mistake_of_a_tagged_list_is_reported(task: object, path: str, fix: str) -> None:
    error = mistake({"name": "x", "tasks": [task]}, DatasetSchema)
    assert error.path == f"job.yaml: {path}"
    assert fix in error.fix


def test_an_empty_list_and_a_cross_reference() -> None:
    assert "at least 1 item" in mistake({"name": "x", "tasks": []}, DatasetSchema).rule
    orphan = {"kind": "retrieval", "name": "next", "positive": "click"}
    assert "is no binary task" in mistake({"name": "x", "tasks": [TASK, orphan]}, DatasetSchema).rule


@pytest.mark.parametrize(
    ("text", "line", "rule"),
    [
        ("a: [1\nb: 2", ":2", "valid YAML"),
        ("source: {folder: x}\nname: a\nname: b\n", ":3", "valid YAML"),
        ("- 1\n- 2\n", "", "top level must be a mapping"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, text: str, line: str, rule: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(Job, file)
    assert caught.value.path == f"{file}{line}"
    assert rule in caught.value.rule


@pytest.mark.parametrize(
    "text",
    [
        "{{ items }}", "[a]: b", "? {a: b}\n: c", "name: 2024-13-45", "2024-13-45: 1", "2024-01-02: 1",
        "name: !!int ''", "name: !!timestamp x", f"name: {'9' * 6000}", "name: {2024-01-02: 1}",
        "[" * 5000, f"name: {'[' * 5000}", f"name: {'{a: ' * 600}1{'}' * 600}", "name: &a [*a]", "name: &a {b: *a}",
    ],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_every_bad_edit_is_a_mistake_of_the_user(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(f"source: {{folder: x}}\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        load(Job, file)
    assert caught.value.path.startswith(str(file))
    assert caught.value.rule
    assert caught.value.fix


@pytest.mark.parametrize("value", ["2024-13-45", "{{ folder }}", "[" * 5000], ids=lambda value: value[:20])
def test_an_override_that_is_no_yaml_is_a_text(value: str) -> None:
    assert load(Job, None, ["source.folder=x", f"name={value}"]).name == value


def test_absent_folder_and_wrong_encoding(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("name: caf\xe9".encode("latin-1"))
    for path, rule in ((tmp_path / "none.yaml", "No such file"), (tmp_path, "directory"), (latin, "UTF-8")):
        with pytest.raises(ConfigError, match=rule):
            load(Job, path)


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("nonsense", "must read a.b=value"),
        ("source.folder.deeper=1", "no keys below"),
        ("source.extras.5=x", "position in a list of 1"),
        ("source.extras.x=x", "position in a list of 1"),
        ("source..folder=1", "unknown key"),
    ],
)
def test_bad_overrides(tmp_path: Path, override: str, rule: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("source: {folder: data, extras: [a]}\n")
    with pytest.raises(ConfigError, match=rule):
        load(Job, file, [override])


def test_a_mistake_of_an_override_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("source: {folder: data}\n")

    def told(*overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load(Job, tmp_path / "job.yaml", overrides)
        return str(caught.value)

    assert told("mode=exact", "foldr=x").startswith('override foldr=…: got "x"; unknown key;')
    assert told("optimizer={kind: adam, learning_rat: 1}").startswith("override optimizer=…: optimizer.learning_rat: ")
    (tmp_path / "job.yaml").write_text("source: {folder: data}\nfoldr: x\n")
    assert told("mode=exact").startswith(f"{tmp_path / 'job.yaml'}: foldr: ")


def test_another_kind_leaves_behind_what_it_does_not_have(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("source: {folder: data}\noptimizer: {kind: sgd, learning_rate: 0.5, momentum: 0.1}\n")
    assert load(Job, file, ["optimizer.kind=adam"]).optimizer == Adam(learning_rate=0.5)
    assert "optimizer.kind=adam: left out what that kind does not have: momentum" in caplog.text
    with pytest.raises(ConfigError, match="unknown key"):  # told in the same breath, it is a mistake
        load(Job, file, ["optimizer.kind=adam", "optimizer.momentum=0.5"])
    with pytest.raises(ConfigError, match="did you mean 'adam'"):
        load(Job, file, ["optimizer.kind=adm"])
    with pytest.raises(ConfigError, match=r"must be a mapping; fix: write 'optimizer.kind: …', one of adam, sgd"):
        load(Job, file, ["optimizer=null"])


def test_path_fields_reach_into_lists_mappings_and_optionals() -> None:
    raw = {"source": {"folder": "a", "extras": ["b"]}, "by_name": {"x": {"folder": "c"}}, "labels": "d", "out": "e"}
    found = path_fields(parse(Job, raw))
    assert found == {"source.folder": "a", "source.extras.0": "b", "by_name.x.folder": "c", "labels": "d", "out": "e"}
    assert replace(parse(Job, raw), {"source.extras.0": "/b"}).source.extras == ("/b",)


def test_configs_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse(Job, GOOD).name = "other"  # type: ignore[misc]
