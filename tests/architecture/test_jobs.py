"""The jobs: listed, runnable from both doors, their YAMLs valid, and every command the README shows exists."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

from rayrank.config import Config, ConfigError, load, parse
from rayrank.on_ray.space import check_space, read_space
from rayrank.pipeline.quickstart_plan import QuickstartConfig, plan
from rayrank.pipeline.verbs import VERBS, bind
from rayrank.schema import DatasetSchema

ROOT = Path(__file__).resolve().parents[2]
JOBS = sorted(p for p in (ROOT / "jobs").glob("*.py") if not p.stem.startswith("_"))
YAMLS = sorted((ROOT / "jobs" / "configs").rglob("*.yaml"))
MAKE_TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_jobs_and_verbs_are_the_same() -> None:
    assert {path.stem for path in JOBS} == set(VERBS)


def test_python_m_jobs_lists_every_job() -> None:
    listed = subprocess.run([sys.executable, "-m", "jobs"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert listed.returncode == 0, listed.stderr
    for name, verb in VERBS.items():
        assert re.search(rf"^  {name} +{re.escape(verb.line)}$", listed.stdout, re.MULTILINE)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_job_module_names_its_config_and_function(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) == VERBS[path.stem].line
    job = bind(path.stem)
    module = importlib.import_module(f"jobs.{path.stem}")
    assert getattr(module, job.config.__name__) is job.config
    assert getattr(module, path.stem) is job.function
    assert f"start({job.config.__name__}, {path.stem})" in path.read_text()


@pytest.mark.parametrize("name", VERBS)
def test_every_config_key_is_described(name: str) -> None:
    undescribed, seen, waiting = [], set(), [bind(name).config]
    while waiting:
        model = waiting.pop()
        seen.add(model)
        for key, field in model.model_fields.items():
            if not field.description and key != "kind":
                undescribed.append(f"{model.__name__}.{key}")
            waiting += [found for found in _configs(field.annotation) if found not in seen]
    assert undescribed == []


def _configs(annotation: object) -> list[type]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [found for inner in get_args(annotation) for found in _configs(inner)]


def verb_of(path: Path) -> str:
    """The job that a YAML is for: its own name (``teacher`` for train_teacher), or its folder's."""
    names = {"teacher": "train_teacher", "student": "distill"}
    for part in (path.stem, path.parent.name):
        stem = part.split("-")[0].split(".")[0]
        for name in (names.get(stem, stem), stem):
            if name in VERBS:
                return name
        for name in VERBS:
            if stem.startswith(f"{name}_"):
                return name
    raise AssertionError(f"{path}: no job of that name; name the file after its job")


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_job_yaml_is_valid(path: Path) -> None:
    load(DatasetSchema if path.stem == "dataset" else bind(verb_of(path)).config, path)


def test_the_defaults_of_the_quickstart_make_valid_job_configs() -> None:
    for job in vars(plan(QuickstartConfig())).values():
        again = parse(type(job), job.model_dump(mode="json"))
        assert again == job


@pytest.mark.parametrize("path", sorted((ROOT / "tune_spaces").glob("*.yaml")), ids=lambda path: path.name)
def test_every_search_space_fits_the_config_it_changes(path: Path) -> None:
    base = plan(QuickstartConfig()).distill
    check_space(read_space(str(path)), base, path.name)
    misspelt = {"objective.distillation.temprature": read_space(str(path))["objective.distillation.temperature"]}
    with pytest.raises(ConfigError, match="temperature"):
        check_space(misspelt, base, path.name)


@pytest.mark.parametrize("path", sorted((ROOT / "serve_apps").glob("*.yaml")), ids=lambda path: path.name)
def test_every_serve_config_names_a_builder_and_its_typed_arguments(path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    deployed = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    for application in deployed.applications:
        module, _, name = application.import_path.partition(":")
        builder = getattr(importlib.import_module(module), name)
        (spec,) = inspect.signature(builder).parameters.values()
        assert isinstance(spec.annotation, type), "annotations of a builder must not be postponed"
        assert issubclass(spec.annotation, Config)
        parse(spec.annotation, application.args, origin=path.name)


def test_a_misspelt_key_in_a_shipped_yaml_is_found(tmp_path: Path) -> None:
    broken = tmp_path / "doctor.yaml"
    broken.write_text((ROOT / "jobs/configs/doctor.yaml").read_text().replace("memory_gb", "memry_gb"))
    with pytest.raises(ConfigError, match="did you mean 'memory_gb'"):
        load(bind("doctor").config, broken)


def test_the_runtime_env_is_valid() -> None:
    raw = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text())
    assert raw["env_vars"]["PYTHONPATH"] == "platform"
    assert {".venv", "runs", ".git"} <= {pattern.strip("/") for pattern in raw["excludes"]}
    assert "RAYRANK_BASE" not in raw["env_vars"], "a base of one machine; pass it with --runtime-env-json or the config"


def readme_commands() -> list[str]:
    """Lines of the README's shell blocks, continuation lines joined, prompts removed."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:bash|sh|console|shell)\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ").split("  #")[0].strip() for line in lines if line.strip()]


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="no README.md in this tree (docs left out)")
def test_every_readme_command_exists() -> None:
    problems = []
    for command in readme_commands():
        problems += [f"{command}: no target" for t in re.findall(r"^make ([a-z-]+)", command) if t not in MAKE_TARGETS]
        for module in re.findall(r"python -m (jobs|benchmarks|serve_apps)\b", command):
            name = re.search(rf"python -m {module}\.(\w+)", command)
            if name and not (ROOT / module / f"{name[1]}.py").exists():
                problems.append(f"{command}: no such module")
        verb = re.match(r"(?:\.venv/bin/)?rayrank (\w+)", command)
        if verb and verb[1] not in VERBS:
            problems.append(f"{command}: no such job")
        job = re.search(r"(?:python -m jobs\.|rayrank )(\w+) (\S+\.yaml)((?: [\w.]+=\S+)*)", command)
        if job and (ROOT / job[2]).exists():
            load(bind(job[1]).config, ROOT / job[2], job[3].split())
        elif job and job[2].startswith("jobs/configs/"):
            problems.append(f"{command}: no such config")
        problems += [
            f"{command}: no {file}"
            for file in re.findall(r"(?:tests|docs|serve_apps)/\S+\.\w+", command)
            if not (ROOT / file).exists()
        ]
    assert problems == []
