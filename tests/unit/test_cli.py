"""The entry point round a job: exit codes, messages, overrides, path resolution."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import Field

from rayrank.__main__ import dispatch
from rayrank.config import Config, ConfigError, DataPath
from rayrank.entry import describe, listing, run
from rayrank.locations import SUBMITTED_JOB, base_folder, is_absolute, resolve, resolve_paths
from rayrank.pipeline.verbs import VERBS, Job


class EchoConfig(Config):
    out: DataPath = Field("runs/echo", description="where it would write")
    store: DataPath = Field("sqlite:///runs/m.db", description="a store")
    words: int = Field(1, ge=1, description="how many")
    loud: bool = Field(False, description="a flag")
    fail: str = Field("", description="how to fail")


@dataclass(frozen=True)
class EchoResult:
    words: int
    out: str
    refused: bool = False


def echo(config: EchoConfig, progress: Callable[[str], None]) -> EchoResult:
    progress("echoing")
    if config.fail == "user":
        raise ConfigError("data.folder", "x", "must exist", "make it")
    if config.fail == "missing":
        raise ConfigError(config.out, None, "holds nothing", "make it")
    if config.fail == "crash":
        raise RuntimeError("first line\nsecond line")
    return EchoResult(config.words + 10 * config.loud, config.out, refused=config.fail == "gate")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAYRANK_BASE", raising=False)
    monkeypatch.delenv(SUBMITTED_JOB, raising=False)
    (tmp_path / "echo.yaml").write_text("words: 2\n")
    return lambda *argv: run(Job("doctor", EchoConfig, echo), argv, program="echo")


def test_runs_and_says_what_was_made(call, capsys, tmp_path: Path) -> None:
    assert call("echo.yaml", "words=3", "--loud") == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == ["words: 13", f"out: {tmp_path}/runs/echo", "refused: False"]
    assert "echoing" in err


def test_show_prints_the_resolved_config_and_runs_nothing(call, capsys, tmp_path: Path) -> None:
    assert call("--show", "echo.yaml", "words=3", "fail=crash") == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[:3] == [f"out: {tmp_path}/runs/echo", f"store: sqlite:///{tmp_path}/runs/m.db", "words: 3"]
    assert err == ""


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["words=0"], 2, "error: override words=…: got 0; Input should be greater than or equal to 1; fix: "),
        (["none.yaml"], 2, "error: none.yaml: must be readable (No such file or directory); fix: "),
        (["a.yaml", "b.yaml"], 2, "one config file at most"),
        (["wrods=1"], 2, "did you mean 'words'?"),
        (["fail=user"], 2, 'error: data.folder: got "x"; must exist; fix: make it'),
        (["fail=missing", "out=/nowhere"], 2, 'error: out: got "/nowhere"; holds nothing; fix: make it'),
        (["fail=gate"], 3, ""),
        (["fail=crash"], 1, "error: unexpected RuntimeError: first line; stack trace: "),
    ],
)
def test_exit_codes_and_one_line_errors(call, capsys, argv: list[str], code: int, message: str) -> None:
    assert call(*argv) == code
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_stack_trace_goes_to_a_file_or_on_demand_to_the_screen(call, capsys) -> None:
    call("fail=crash")
    file = capsys.readouterr().err.split("stack trace: ")[1].split(" (or")[0]
    assert "second line" in Path(file).read_text()
    Path(file).unlink()
    call("fail=crash", "--debug")
    assert "Traceback" in capsys.readouterr().err


def test_a_job_without_default_asks_for_its_config(capsys) -> None:
    assert run(Job("prepare", EchoConfig, echo), [], program="rayrank prepare") == 2
    assert "this job needs a config file; fix: rayrank prepare CONFIG.yaml" in capsys.readouterr().err


class LoudnessConfig(Config):
    volume: int = Field(3, description="how loud")


class SectionConfig(Config):
    loudness: LoudnessConfig = Field(default_factory=LoudnessConfig, description="a section")


class NestedConfig(Config):
    voice: SectionConfig = Field(default_factory=SectionConfig, description="how it sounds")


def test_help_shows_the_keys_of_sections_and_where_deeper_ones_are(capsys) -> None:
    with pytest.raises(SystemExit):
        run(Job("doctor", NestedConfig, echo), ["--help"], program="echo")
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "voice how it sounds [its keys: below]" in lines
    assert "voice.loudness a section [its keys: --show]" in lines
    assert not any("volume" in line for line in lines)


def test_help_describes_every_key(call, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        call("--help")
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out and str(field.description) in out for name, field in EchoConfig.model_fields.items())


def test_relative_paths_in_a_submitted_job_are_refused_without_a_base(call, capsys, monkeypatch) -> None:
    monkeypatch.setenv(SUBMITTED_JOB, "{}")
    assert call("echo.yaml") == 2
    assert "set RAYRANK_BASE in the runtime env" in capsys.readouterr().err
    monkeypatch.setenv("RAYRANK_BASE", "/base")
    assert call("echo.yaml") == 0
    assert "out: /base/runs/echo" in capsys.readouterr().out
    monkeypatch.setenv("RAYRANK_BASE", "base")
    assert call("echo.yaml") == 2
    assert "must be an absolute folder or a URL" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("runs/x", "/base/runs/x"),
        ("../x", "/x"),
        ("/abs", "/abs"),
        ("s3://bucket/x", "s3://bucket/x"),
        ("sqlite:///runs/m.db", "sqlite:////base/runs/m.db"),
        ("sqlite:////abs/m.db", "sqlite:////abs/m.db"),
        ("~/x", str(Path("~/x").expanduser())),
    ],
)
def test_resolve(path: str, expected: str) -> None:
    assert resolve(path, "/base") == expected
    assert is_absolute(expected)


def test_a_url_can_be_the_base() -> None:
    assert base_folder({"RAYRANK_BASE": "s3://bucket/team/"}) == "s3://bucket/team"
    assert resolve("runs/x", "s3://bucket/team") == "s3://bucket/team/runs/x"


def test_files_that_travel_with_the_code_are_found_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tune_spaces").mkdir()
    (tmp_path / "tune_spaces" / "a.yaml").write_text("")
    shipped = EchoConfig(out="tune_spaces/a.yaml", store="/m.db")
    assert resolve_paths(shipped, None).out == resolve_paths(shipped, "/base").out == f"{tmp_path}/tune_spaces/a.yaml"
    absent = EchoConfig(out="tune_spaces/b.yaml", store="/m.db")
    assert resolve_paths(absent, "/base").out == "/base/tune_spaces/b.yaml"
    with pytest.raises(ConfigError, match="thrown away"):
        resolve_paths(absent, None)


def test_resolving_twice_changes_nothing() -> None:
    once = resolve_paths(EchoConfig(), "/base")
    assert once.out == "/base/runs/echo"
    assert resolve_paths(once, "/other") == once


def test_describe_prefers_the_summary() -> None:
    class Result:
        def summary(self) -> list[str]:
            return ["made: this"]

    assert describe(Result()) == ["made: this"]
    assert describe(None) == []
    assert describe("done") == ["done"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("nothing-like-it", "one of: init, validate"),
        ("train-techer", "did you mean 'python -m jobs train_teacher'?"),
    ],
)
def test_a_job_that_there_is_not_is_a_mistake(name: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch([name], "python -m jobs") == 2
    err = capsys.readouterr().err
    assert f'got "{name}"' in err
    assert hint in err
    assert dispatch(["--help"], "rayrank") == dispatch([], "rayrank") == 0


@pytest.mark.parametrize("words", [["jobs", "prepare"], ["jobs.prepare"], ["rayrank", "prepare"]], ids=" ".join)
def test_a_job_is_started_by_any_of_its_names(words: list[str]) -> None:
    asked = [sys.executable, "-m", *words, "jobs/configs/synthetic/prepare.yaml", "--show"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "kind: synthetic" in done.stdout


def test_listing_has_a_line_for_every_job() -> None:
    lines = listing().splitlines()
    assert [line.split()[0] for line in lines] == list(VERBS)
    assert all(verb.line.endswith(".") for verb in VERBS.values())


def test_the_command_is_quick_and_names_the_nearest_job() -> None:
    began = time.perf_counter()
    helped = subprocess.run([sys.executable, "-m", "rayrank", "--help"], capture_output=True, text=True, timeout=30)
    assert time.perf_counter() - began < 3.0  # 0.2 s on an idle machine
    assert helped.returncode == 0
    assert all(name in helped.stdout for name in VERBS)
    loaded = "import sys, rayrank.__main__; print([m for m in ('torch', 'ray', 'mlflow', 'numpy') if m in sys.modules])"
    heavy = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, timeout=30)
    assert heavy.stdout.strip() == "[]"
    wrong = subprocess.run([sys.executable, "-m", "rayrank", "prepar"], capture_output=True, text=True, timeout=30)
    assert wrong.returncode == 2
    assert "did you mean 'rayrank prepare'?" in wrong.stderr
