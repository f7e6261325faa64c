"""Which code made a model, labels, a trial or a smaller bundle: they are found again only while it is the same."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

_DECIDES = (
    *("batch.py", "schema.py", "features", "learning", "metrics", "models", "objectives", "compression"),
    *("sources/collate.py", "sources/dataset.py", "sources/groups.py", "sources/encoders.py"),
    *("on_ray/fit.py", "on_ray/items.py", "on_ray/label.py", "on_ray/label_spec.py", "on_ray/teachers.py"),
    *("on_ray/trial.py", "pipeline/cost.py", "pipeline/side_by_side.py", "ranking/scorer.py"),
)


@cache
def code_digest() -> str:
    """sha256 over the syntax trees of the modules that decide the numbers of what is found again."""
    return digest_of(Path(__file__).resolve().parents[1])


def digest_of(root: Path) -> str:
    """The same for the package in ``root``; comments and layout do not count."""
    found = hashlib.sha256()
    for name in _DECIDES:
        place = root / name
        for file in [place] if place.is_file() else sorted(place.rglob("*.py")):
            found.update(file.relative_to(root).as_posix().encode())
            found.update(ast.dump(ast.parse(file.read_bytes())).encode())
    return found.hexdigest()
