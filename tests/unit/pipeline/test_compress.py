"""Compress end to end: what passes is an ordinary bundle that says what it cost; what does not pass is not written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rayrank
from rayrank.bundle import BundleInfo, load_bundle, read_id, read_info
from rayrank.compression.apply import compressed
from rayrank.compression.spec import Bf16
from rayrank.config import ConfigError, parse
from rayrank.models.spec import CrossSpec
from rayrank.on_ray.task import FitTask
from rayrank.on_ray.train import Workers, run_in_process
from rayrank.pipeline.compress import CompressConfig, CompressResult, compress
from rayrank.pipeline.cost import request_contexts
from rayrank.ranking.context import ColdItems
from rayrank.ranking.items import DESCRIBED
from rayrank.ranking.scorer import Scorer
from rayrank.ranking.store import empty_history
from rayrank.sources.dataset import Dataset

LOOSE = {"max_score_difference": 1.0, "min_kendall_tau": -1.0, "max_ndcg_drop": 1.0, "max_logloss_ratio": 10.0}


def quiet(_line: str) -> None:
    """A progress listener that says nothing."""


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A small dataset and a teacher with a tiny text encoder of two layers."""
    from rayrank.sources.build import build, run_here
    from rayrank.sources.spec import BuildSpec

    folder = Path(tmp_path_factory.mktemp("texts"))
    made = {"dataset": str(folder / "dataset"), "bundle": str(folder / "teacher")}
    source = {"kind": "synthetic", "num_rows": 1500, "num_users": 60, "num_items": 60}
    build(parse(BuildSpec, {"source": source, "path": made["dataset"]}), run_here, quiet)
    teacher = {"kind": "teacher", "width": 16, "id_width": 8, "attention_heads": 2}
    raw = {"dataset": made["dataset"], "output": made["bundle"], "model": teacher, "learning": {"epochs": 1}}
    encoder = {"kind": "tiny", "width": 16, "layers": 2, "max_tokens": 24}
    run_in_process(parse(FitTask, raw | {"encoder": encoder}), Workers(count=0, gpu="never"), quiet)
    return made


def run(texts: dict[str, str], output: Path, method: dict[str, Any], gate: dict[str, float]) -> CompressResult:
    raw = texts | {"output": str(output), "method": method, "gate": gate, "tracking": {"kind": "none"}}
    return compress(parse(CompressConfig, raw | {"requests": 5, "candidates": 20}), quiet)


@pytest.mark.parametrize(
    ("method", "dtype", "likeness"),
    [
        ({"kind": "prune", "layers": 1, "heads": 2, "feed_forward": 16, "recovery": {"steps": 5}}, "float32", 0.5),
        ({"kind": "bf16"}, "bfloat16", 0.999),
        ({"kind": "int8"}, "int8", 0.99),
        ({"kind": "int8", "inputs": "static"}, "int8", 0.99),
        ({"kind": "onnx", "int8": "dynamic"}, "int8", 0.99),
    ],
    ids=["prune", "bf16", "int8", "int8 static", "onnx int8"],
)
def test_what_passes_is_an_ordinary_bundle(
    texts: dict[str, str], tmp_path: Path, method: dict[str, Any], dtype: str, likeness: float
) -> None:
    result = run(texts, tmp_path / "small", method, LOOSE)
    assert not result.refused
    bundle, original = load_bundle(tmp_path / "small"), read_info(texts["bundle"])
    assert bundle.bundle_id == result.bundle_id
    assert bundle.info.dtype == dtype
    assert [p.bundle_id for p in bundle.info.parents] == [read_id(texts["bundle"])]
    assert bundle.info.encoder is not None
    assert original.encoder is not None
    assert bundle.info.encoder != original.encoder
    assert bundle.info.encoder.backend == ("onnx" if method["kind"] == "onnx" else "torch")
    assert bundle.text_ND is not None
    before = load_bundle(texts["bundle"]).text_ND
    assert (bundle.text_ND * before).sum(-1)[1:].mean() > likeness
    assert result.found.differences["mean_text_cosine"] > likeness
    ranked = rayrank.load(str(tmp_path / "small")).rank(["i0000003"], ["i0000005", {"text": "A baker travels."}])
    assert len(ranked) == 2
    compression = bundle.info.compression
    assert compression is not None
    assert compression.method["kind"] == method["kind"]
    assert compression.differences == pytest.approx(result.found.differences)
    assert compression.limits["kendall_tau"] == -1.0
    assert bundle.info.metrics["snapshot/like/ndcg_10"] > 0
    card = (tmp_path / "small" / "MODEL_CARD.md").read_text()
    before_s, after_s = compression.speeds["texts per second"]
    assert f"| texts per second | {before_s:,.1f} | {after_s:,.1f} | {after_s / before_s:.2f} |" in card
    assert "| kendall_tau | " in card.partition("## Compression")[2]


def test_what_the_gate_refuses_is_not_written_and_all_numbers_are_told(texts: dict[str, str], tmp_path: Path) -> None:
    gate = {"max_score_difference": 0.0, "min_kendall_tau": 1.0, "max_ndcg_drop": 1.0, "max_logloss_ratio": 0.01}
    result = run(texts, tmp_path / "small", {"kind": "int8"}, gate)
    assert result.refused
    assert result.bundle_id is None
    assert list(tmp_path.iterdir()) == []
    told = "\n".join(result.summary())
    for name in ("score_difference", "kendall_tau", "logloss_ratio"):
        assert f"FAILED  {name} {result.found.differences[name]:.4f}" in told
    assert f"passed  ndcg_drop {result.found.differences['ndcg_drop']:.4f}" in told
    assert told.endswith("refused, nothing was written; 3 of 4 limits not kept")


def test_an_unchanged_score_is_found_unchanged(texts: dict[str, str], tmp_path: Path) -> None:
    strict = {"max_score_difference": 0.05, "min_kendall_tau": 0.95, "max_ndcg_drop": 0.02, "max_logloss_ratio": 1.01}
    result = run(texts, tmp_path / "small", {"kind": "bf16"}, strict)
    assert not result.refused, result.summary()
    assert 0 < result.found.differences["score_difference"] < 0.05
    assert run(texts, tmp_path / "small", {"kind": "bf16"}, strict).bundle_id == result.bundle_id, (
        "found, not made anew"
    )
    assert run(texts, tmp_path / "small", {"kind": "bf16"}, LOOSE).bundle_id != result.bundle_id, "other limits"


def test_only_what_was_made_by_the_same_code_for_the_same_requests_is_found(
    texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor what has been damaged since."""
    told = list[str]()
    raw = texts | {"output": str(tmp_path / "small"), "method": {"kind": "bf16"}, "gate": LOOSE}
    raw |= {"requests": 5, "candidates": 20, "tracking": {"kind": "none"}}

    def found(**changes: int) -> bool:
        told.clear()
        assert compress(parse(CompressConfig, raw | changes), told.append).bundle_id is not None
        return told[-1].startswith("found: ")

    assert [found(), found()] == [False, True]
    assert [found(candidates=21), found(requests=6), found(requests=6)] == [False, False, True]
    weights = next((tmp_path / "small").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    assert not found(requests=6)
    assert found(requests=6)
    monkeypatch.setattr("rayrank.pipeline.compress.code_digest", lambda: "other")
    assert not found(requests=6)


def test_mistakes_name_path_and_fix(texts: dict[str, str], world: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must not be the bundle itself"):
        run(texts, Path(texts["bundle"]), {"kind": "bf16"}, LOOSE)
    with pytest.raises(ConfigError, match="give at least one of layers, heads and feed_forward"):
        run(texts, tmp_path / "small", {"kind": "prune"}, LOOSE)
    with pytest.raises(ConfigError, match=r"trained on (another schema|other data)"):
        run(texts | {"bundle": world.student}, tmp_path / "small", {"kind": "bf16"}, LOOSE)
    with pytest.raises(ConfigError, match="no text encoder to compress"):
        run({"dataset": world.dataset, "bundle": world.student}, tmp_path / "small", {"kind": "bf16"}, LOOSE)
    run(texts, tmp_path / "small", {"kind": "bf16"}, LOOSE)
    with pytest.raises(ConfigError, match="a graph already"):
        run(texts | {"bundle": str(tmp_path / "small")}, tmp_path / "smaller", {"kind": "int8"}, LOOSE)


def test_cross_teachers_are_refused(texts: dict[str, str]) -> None:
    bundle = load_bundle(texts["bundle"])
    crossed = replace(bundle, info=bundle.info.model_copy(update={"spec": CrossSpec()}))
    with pytest.raises(ConfigError, match="a cross teacher reads whole requests"):
        compressed(crossed, Bf16(), Dataset.open(texts["dataset"]), quiet)


def test_manifests_from_before_compression_are_read(texts: dict[str, str]) -> None:
    raw = json.loads((Path(texts["bundle"]) / "bundle.json").read_text())
    del raw["compression"], raw["encoder"]["backend"]
    assert parse(BundleInfo, raw) == read_info(texts["bundle"])
    assert "## Compression" not in (Path(texts["bundle"]) / "MODEL_CARD.md").read_text()


def test_a_student_answers_by_its_graphs(world: Any, tmp_path: Path) -> None:
    """Loaded, it scores by them; what they say is what torch says; one that was changed is not loaded."""
    strict = {
        "max_score_difference": 1e-5,
        "min_kendall_tau": 0.999,
        "max_ndcg_drop": 1e-4,
        "max_logloss_ratio": 1.0001,
    }
    made, given = tmp_path / "graphs", {"dataset": world.dataset, "bundle": world.student}
    result = run(given, made, {"kind": "onnx_ranker"}, strict)
    assert not result.refused, result.summary()
    assert 0 < result.found.differences["score_difference"] < 1e-5, "judged by what the graphs say"
    assert result.found.speeds["candidates per second"][1] > 0
    bundle = load_bundle(made)
    assert (bundle.info.backend, bundle.info.role) == ("onnx", "student")
    assert {"graphs/user_state.onnx", "graphs/score.onnx"} <= bundle.info.files.keys()
    dataset = Dataset.open(world.dataset)
    contexts = request_contexts(dataset, bundle.info.window, 3)
    tasks = tuple(contexts[0].history.labels)
    for context in [*contexts, replace(contexts[0], history=empty_history(tasks))]:
        rows = np.arange(1, 21)
        one, other = (Scorer(bundle, backend).score(context, rows, ColdItems()) for backend in ("onnx", "torch"))
        for task, scores in one.scores.items():
            np.testing.assert_allclose(scores, other.scores[task], rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="holds no graphs"):
        Scorer(load_bundle(world.student), "onnx")
    with pytest.raises(ConfigError, match="a graph already"):
        run(given | {"bundle": str(made)}, tmp_path / "again", {"kind": "onnx_ranker"}, LOOSE)
    score = made / "graphs" / "score.onnx"
    score.write_bytes(score.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="sha256 differs"):
        load_bundle(made)


def test_a_narrower_student_is_an_ordinary_student(world: Any, tmp_path: Path) -> None:
    given, told = {"dataset": world.dataset, "bundle": world.student}, list[str]()
    method = {"kind": "narrow", "hidden": 8, "width": 8, "taste_width": 8, "judged_batches": 2}
    raw = given | {"output": str(tmp_path / "small"), "method": method | {"recovery": {"steps": 60}}, "gate": LOOSE}
    config = parse(CompressConfig, raw | {"requests": 5, "candidates": 20, "tracking": {"kind": "none"}})
    result = compress(config, told.append)
    assert not result.refused, result.summary()
    bundle, original = load_bundle(tmp_path / "small"), read_info(world.student)
    assert (bundle.info.spec.hidden, bundle.info.spec.width, bundle.info.spec.taste_width) == (8, 8, 8)
    assert bundle.info.role == "student"
    assert bundle.info.parameters < original.parameters
    lost = [float(line.split(": ")[1].split()[0]) for line in told if " of the variance " in line]
    assert lost[1] < lost[0], "recovery mends"
    before, after = result.found.speeds["megabytes of weights"]
    assert after < before
    with pytest.raises(ConfigError, match=r"method\.hidden.*the student has 16"):
        run(given, tmp_path / "wider", {"kind": "narrow", "hidden": 16}, LOOSE)
    with pytest.raises(ConfigError, match="students of kind: student"):
        run(given | {"bundle": world.teacher}, tmp_path / "wider", {"kind": "narrow", "hidden": 8}, LOOSE)


def test_a_pruned_encoder_goes_with_a_student_for_items_it_never_met(texts: dict[str, str], tmp_path: Path) -> None:
    """Its vectors are those that the student would be given; items of the table keep the teacher's."""
    small, student, plain = tmp_path / "small", tmp_path / "student", tmp_path / "plain"
    run(texts, small, {"kind": "prune", "layers": 1, "recovery": {"steps": 5}}, LOOSE)
    raw = {"dataset": texts["dataset"], "teacher": texts["bundle"], "learning": {"epochs": 1}}
    raw["model"] = {"kind": "two_tower", "width": 8, "hidden": 8}
    for place, more in ((student, {"cold_encoder": str(small)}), (plain, {})):
        run_in_process(parse(FitTask, raw | {"output": str(place)} | more), Workers(count=0, gpu="never"), quiet)
    bundle, teacher, encoder = load_bundle(student), load_bundle(texts["bundle"]), load_bundle(small)
    assert (bundle.info.role, bundle.info.spec.kind) == ("student", "two_tower")
    assert bundle.text_ND is not None
    assert torch.equal(bundle.text_ND, teacher.text_ND)
    assert "its own encoder" in (student / "MODEL_CARD.md").read_text()
    context = request_contexts(Dataset.open(texts["dataset"]), bundle.info.window, 1)[0]
    rows = np.arange(1, 5)
    cold = ColdItems(
        ("new",), ("A baker travels.",), {n: v[1:2].numpy() for n, v in bundle.catalogue().features.items()}
    )
    vectors = Scorer(encoder).encode(cold)
    assert vectors is not None
    np.testing.assert_allclose(Scorer(bundle).encode(cold), vectors, rtol=1e-5, atol=1e-6)
    asked = np.append(rows, DESCRIBED)
    own = Scorer(bundle).score(context, asked, cold)
    given = Scorer(load_bundle(plain)).score(context, asked, replace(cold, vectors=vectors))
    without = Scorer(load_bundle(plain)).score(context, asked, cold)
    for task, scores in own.scores.items():
        np.testing.assert_allclose(scores, given.scores[task], rtol=1e-5, atol=1e-5)
        assert abs(scores[-1] - without.scores[task][-1]) > 1e-6
    with pytest.raises(ConfigError, match="compress its teacher"):
        run(texts | {"bundle": str(student)}, tmp_path / "no", {"kind": "bf16"}, LOOSE)
    wrong = raw | {"output": str(tmp_path / "no"), "cold_encoder": str(small), "model": {"kind": "teacher"}}
    with pytest.raises(ConfigError, match="goes with a student"):
        run_in_process(parse(FitTask, wrong), Workers(count=0, gpu="never"), quiet)
