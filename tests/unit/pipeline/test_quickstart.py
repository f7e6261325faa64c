"""What a quickstart leaves behind: the config that trained the student, a summary and a page."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rayrank.config import load, parse
from rayrank.pipeline import quickstart
from rayrank.pipeline.distill import DistillConfig
from rayrank.pipeline.evaluate import EvaluateConfig, evaluate
from rayrank.pipeline.gates import GatesConfig
from rayrank.pipeline.prepare import PrepareResult
from rayrank.pipeline.probe import Probe
from rayrank.pipeline.promote import PromoteConfig, promote
from rayrank.pipeline.quickstart_plan import QuickstartConfig, plan, write_plan
from rayrank.pipeline.quickstart_report import Made, write_summary
from rayrank.sources.manifest import read_manifest

OFF = {"tracking": {"kind": "none"}}


def quiet(_: str) -> None:
    pass


def test_the_config_beside_the_results_is_the_winners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, trained = plan(QuickstartConfig(output=str(tmp_path))), []
    best = {"objective.distillation.temperature": 3.5}
    for name in ("prepare", "train_teacher", "label"):
        monkeypatch.setattr(quickstart, name, lambda *_: None)
    monkeypatch.setattr(quickstart, "tune", lambda *_: SimpleNamespace(best=best, winner_run="run-7"))
    monkeypatch.setattr(quickstart, "distill", lambda config, _: trained.append(config))
    write_plan(str(tmp_path), jobs)
    quickstart._train(str(tmp_path), jobs, Made(), quiet)
    assert trained == [load(DistillConfig, tmp_path / "jobs" / "distill.yaml")]
    assert trained[0].objective.distillation.temperature == 3.5
    assert trained[0].parent_run == "run-7"


@pytest.fixture(scope="module")
def made(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("quickstart")
    bundles = OFF | {"dataset": world.dataset, "teacher": world.teacher, "student": world.student, "resamples": 100}
    gates = GatesConfig(candidates=50, requests=20)
    raw = bundles | {"output": str(folder), "cost_candidates": gates.candidates, "cost_requests": gates.requests}
    judged = evaluate(parse(EvaluateConfig, raw), quiet)
    config = parse(PromoteConfig, bundles | {"releases": str(folder / "releases"), "gates": gates.model_dump()})
    return Made(
        seconds={"prepare": 1.0},
        prepare=PrepareResult(world.dataset, read_manifest(world.dataset), True),
        evaluate=judged,
        promote=promote(config, quiet, judged.comparison),
        probe=Probe({"rank": (1.0, 2.0, 3.0, 4.0, 30.0)}, {}, {}),
    )


def test_summary_page_and_terminal_say_the_same(made: Made, tmp_path: Path) -> None:
    assert made.prepare is not None
    lines = write_summary(str(tmp_path), made, 12.0)
    summary = json.loads((tmp_path / "summary.json").read_text())
    page = (tmp_path / "report.html").read_text()
    assert summary["latency_ms"] == {"rank": {"p50": 3.0, "p95": 24.8}}
    assert "HTTP: rank: median 3.0 ms, p95 24.8 ms" in lines
    assert "p95 24.8" in page
    assert {"date", "cpu", "cores", "load", "revision"} <= summary.keys()
    assert f"{summary['cpu']}, {summary['cores']} cores" in page
    oracle = made.prepare.manifest.oracle["like"]
    assert summary["oracle_auc"]["like"] == oracle
    assert "best possible AUC of like (oracle)" in page
    assert f"{oracle:.4f}" in page
    assert lines[1].endswith("AUC, GAUC, LogLoss, NE and NDCG@10 are of 'like'")
