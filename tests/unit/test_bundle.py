"""Bundles load only when whole: every kind of damage is refused with the file or leaf named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rayrank.bundle import load_bundle, read_info, save_bundle
from rayrank.bundle.card import model_card
from rayrank.bundle.golden import worst
from rayrank.bundle.info import sha256_of
from rayrank.config import ConfigError
from rayrank.models.spec import Inputs
from tests.tiny_release import SCHEMA, save_student, save_teacher, teacher_text


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    save_teacher(folder / "teacher")
    save_student(folder / "student", teacher_text(folder / "teacher"))
    return folder


@pytest.fixture
def teacher(bundles: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(bundles / "teacher", tmp_path / "teacher"))


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    raw = json.loads((folder / "bundle.json").read_text())
    change(raw)
    (folder / "bundle.json").write_text(json.dumps(raw))


def edit_tensors(folder: Path, name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change a file and the manifest's hash of it, as a careless tool would."""
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name)
    edit_manifest(folder, lambda raw: raw["files"].__setitem__(name, sha256_of(folder / name)))


def test_what_was_saved_comes_back(bundles: Path) -> None:
    for role in ("teacher", "student"):
        bundle = load_bundle(bundles / role)
        assert bundle.info.role == role
        assert bundle.info.data_schema == SCHEMA
        assert bundle.info.schema_fingerprint == SCHEMA.fingerprint()
        assert bundle.info.metrics == {"test.like.auc": 0.5}  # what is no number is left out
        assert bundle.items.num_rows == len(bundle.items_NW) - 1 == 30
        assert not bundle.model.training
        assert not any(p.requires_grad for p in bundle.model.parameters())
        assert bundle.info.libraries["torch"] == torch.__version__


def test_no_pickle_and_only_known_kinds_of_files(bundles: Path) -> None:
    found = {p.suffix for p in bundles.rglob("*") if p.is_file()}
    assert found == {".json", ".safetensors", ".parquet", ".md"}


def test_the_card_tells_what_matters(bundles: Path) -> None:
    card = (bundles / "teacher" / "MODEL_CARD.md").read_text()
    for part in (
        "# teacher trained on tiny",
        "| like | binary |",
        "split: user",
        "test.like.auc | 0.5000",
        "## Limits",
    ):
        assert part in card


@pytest.mark.parametrize(("tuned", "how"), [("frozen", "kept frozen"), ("top", "fine-tuned (top)")])
def test_the_card_names_the_pretrained_encoder_and_the_part_of_its_metrics(bundles: Path, tuned: str, how: str) -> None:
    info = read_info(bundles / "teacher")
    assert info.encoder is not None
    pretrained = info.encoder.model_copy(update={"name": "some-encoder", "sha256": "ab" * 32})
    config = {"encoder": {"kind": "package", "tune": {"kind": tuned}}}
    card = model_card(info.model_copy(update={"encoder": pretrained, "config": config}), 30)
    lineage = card.partition("## Lineage")[2]
    assert f"* pretrained text encoder some-encoder, weights sha256 `{'ab' * 8}`, {how}" in lineage
    assert "none: trained from data alone" not in lineage
    assert "Of the valid part" in card.partition("## Metrics")[2].partition("##")[0]


def test_loading_leaves_the_callers_random_numbers_alone(bundles: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_bundle(bundles / "student")
    assert torch.equal(torch.rand(2), expected)


def test_a_bundle_with_a_table_of_users_that_it_has_no_use_for_is_read(tmp_path: Path) -> None:
    """Such tables were written where user ids are no input."""
    save_student(tmp_path / "old", torch.randn(31, 16), Inputs(user_id=False))

    def as_before(tensors: dict[str, torch.Tensor]) -> None:
        assert "static.user_id.weight" not in tensors
        tensors["static.user_id.weight"] = torch.ones(13, 6)

    edit_tensors(tmp_path / "old", "weights.safetensors", as_before)
    assert load_bundle(tmp_path / "old").model.static.user_id is None


def test_a_changed_byte_is_found(teacher: Path) -> None:
    file = teacher / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"weights\.safetensors.*sha256 differs"):
        load_bundle(teacher)


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "items.parquet", "encoder/tokenizer.json", "golden.safetensors"]
)
def test_a_missing_file_is_named(teacher: Path, name: str) -> None:
    (teacher / name).unlink()
    with pytest.raises(ConfigError, match=rf"{name}.*missing"):
        load_bundle(teacher)


def test_no_manifest_no_bundle(teacher: Path) -> None:
    (teacher / "bundle.json").unlink()
    with pytest.raises(ConfigError, match="no bundle here"):
        load_bundle(teacher)


def test_a_changed_spec_names_leaf_and_both_shapes(teacher: Path) -> None:
    edit_manifest(teacher, lambda raw: raw["spec"].__setitem__("id_width", 6))
    with pytest.raises(ConfigError, match=r"leaf .* has shape \(.*\) .* on disk, \(.*\) .* in the model"):
        load_bundle(teacher)


def test_a_switched_off_input_is_found_by_the_golden_rows(teacher: Path) -> None:
    edit_manifest(teacher, lambda raw: raw["spec"]["inputs"].__setitem__("time", False))
    with pytest.raises(ConfigError, match="does not reproduce its own scores"):
        load_bundle(teacher)


def test_a_changed_schema_is_found(teacher: Path) -> None:
    edit_manifest(teacher, lambda raw: raw["data_schema"].__setitem__("name", "other"))
    with pytest.raises(ConfigError, match="schema_fingerprint"):
        load_bundle(teacher)


def test_another_format_and_unknown_keys_are_refused(teacher: Path) -> None:
    edit_manifest(teacher, lambda raw: raw.__setitem__("colour", "red"))
    with pytest.raises(ConfigError, match="colour"):
        load_bundle(teacher)
    edit_manifest(teacher, lambda raw: raw.__setitem__("format", 99))
    with pytest.raises(ConfigError, match="reads bundle format 2"):
        load_bundle(teacher)


def test_missing_and_foreign_leaves_are_named(teacher: Path) -> None:
    edit_tensors(teacher, "weights.safetensors", lambda t: t.__delitem__("base" if "base" in t else sorted(t)[0]))
    with pytest.raises(ConfigError, match=r"leaf \S+ .* of the model is missing on disk"):
        load_bundle(teacher)
    edit_tensors(teacher, "weights.safetensors", lambda t: t.__setitem__("aaa", torch.zeros(2)))
    with pytest.raises(ConfigError, match=r"leaf aaa \(2,\) on disk is no leaf of the model"):
        load_bundle(teacher)


@pytest.mark.parametrize("name", ["out.like", "out.rating", "out.retrieval", "out.items", "out.text"])
def test_a_wrong_golden_score_is_refused(teacher: Path, name: str) -> None:
    edit_tensors(teacher, "golden.safetensors", lambda t: t[name].view(-1)[0].add_(0.01))
    with pytest.raises(ConfigError, match=rf"golden {name.removeprefix('out.')} differs by"):
        load_bundle(teacher)


def test_a_changed_item_row_is_refused(teacher: Path) -> None:
    edit_tensors(teacher, "items.safetensors", lambda t: t["packed"].add_(0.05))
    with pytest.raises(ConfigError, match="golden"):
        load_bundle(teacher)


def test_golden_rows_are_synthetic_and_stay_the_same(bundles: Path, tmp_path: Path) -> None:
    save_teacher(tmp_path / "again")
    first, second = (load_file(f / "golden.safetensors") for f in (bundles / "teacher", tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k].nan_to_num(), second[k].nan_to_num()) for k in first if k.startswith("in."))
    assert all(worst(first[k], second[k]) < 1e-6 for k in first if k.startswith("out."))


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
@pytest.mark.parametrize("threads", ["1", "4"])
def test_other_processors_and_thread_counts_accept_a_good_bundle(bundles: Path, capability: str, threads: str) -> None:
    code = (
        "import sys, torch; from rayrank.bundle import load_bundle\n"
        f"torch.set_num_threads({threads})\n"
        "for path in sys.argv[1:]: load_bundle(path)\n"
        "print(torch.backends.cpu.get_cpu_capability())"
    )
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": threads}
    command = [sys.executable, "-c", code, str(bundles / "teacher"), str(bundles / "student")]
    lacking = lacking_flags(capability)
    if lacking:
        pytest.skip(f"this processor has no {capability}: it lacks {', '.join(sorted(lacking))}")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = {"default": ("DEFAULT", "NO AVX"), "avx2": ("AVX2",), "avx512": ("AVX512",)}[capability]
    assert done.stdout.strip() in expected, "the asked capability is what the child ran with"


def lacking_flags(capability: str) -> set[str]:
    """Flags that torch's kernels of this capability need and the processor does not name."""
    needed: dict[str, set[str]] = {
        "default": set(),
        "avx2": {"avx2", "fma"},
        "avx512": {"avx512f", "avx512vl", "avx512bw", "avx512dq", "fma"},
    }
    if not needed[capability]:
        return set()
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="ascii", errors="replace").splitlines() if info.is_file() else []
    named = next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())
    return needed[capability] - named


def test_saving_again_replaces_the_bundle_and_a_failed_save_leaves_it(
    bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "student"
    text = teacher_text(bundles / "teacher")
    save_student(target, text)
    save_student(target, text)
    before = read_info(target)
    monkeypatch.setattr("rayrank.bundle.save.model_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_student(target, text)
    assert read_info(target) == before
    assert [p.name for p in tmp_path.iterdir()] == ["student"]
    load_bundle(target)


def test_urls_are_refused_instead_of_becoming_folders() -> None:
    for call in (load_bundle, read_info, lambda path: save_bundle(path, None, None)):  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="local or mounted disk"):
            call("s3://bucket/bundle")  # type: ignore[no-untyped-call]


def test_a_folder_that_cannot_be_written_is_explained(bundles: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    bundle = load_bundle(bundles / "student")
    with pytest.raises(ConfigError, match="must be writable"):
        save_bundle(tmp_path / "file" / "x", bundle.model, None)  # type: ignore[arg-type]
