"""A trained model is found again only when the code that decides its numbers is the same."""

from __future__ import annotations

from pathlib import Path

from rayrank.learning.code import code_digest, digest_of


def _package(root: Path, model: str) -> Path:
    for name in ("features", "learning", "models", "objectives"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "batch.py").write_text("SIZE = 1\n")
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
