"""A trained model is found again only when the code that decides its numbers is the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayrank.learning import code
from rayrank.learning.code import _DECIDES, code_digest, digest_of


def _package(root: Path, model: str) -> Path:
    for name in _DECIDES:
        place = root / name
        (place.parent if name.endswith(".py") else place).mkdir(parents=True, exist_ok=True)
        if name.endswith(".py"):
            place.write_text("SIZE = 1\n")
    (root / "models" / "student.py").write_text(model)
    return root


def test_comments_and_layout_do_not_count_but_code_does(tmp_path: Path) -> None:
    plain = digest_of(_package(tmp_path, "RATE = 0.1\n"))
    assert digest_of(_package(tmp_path, "# why\nRATE  =  0.1\n")) == plain
    assert digest_of(_package(tmp_path, "RATE = 0.2\n")) != plain


def test_a_module_that_is_added_counts(tmp_path: Path) -> None:
    plain = digest_of(_package(tmp_path, "RATE = 0.1\n"))
    (tmp_path / "objectives" / "more.py").write_text("")
    assert digest_of(tmp_path) != plain


def test_the_digest_of_this_package_is_a_sha256() -> None:
    assert len(code_digest()) == 64


@pytest.mark.parametrize(
    "name",
    [
        "on_ray/teachers.py",
        "on_ray/label.py",
        "on_ray/trial.py",
        "metrics/order.py",
        "sources/encoders.py",
        "compression/prune.py",
        "compression/gate.py",
        "on_ray/label_spec.py",
        "pipeline/cost.py",
        "ranking/scorer.py",
    ],
)
def test_what_decides_labels_trials_and_smaller_bundles_counts_too(tmp_path: Path, name: str) -> None:
    root = _package(tmp_path, "RATE = 0.1\n")
    plain, place = digest_of(root), root / name
    place.write_text("SIZE = 2\n")
    assert digest_of(root) != plain


def test_what_decides_is_there() -> None:
    root = Path(code.__file__).resolve().parents[1]
    assert all((root / name).exists() for name in _DECIDES)
