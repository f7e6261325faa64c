"""Which code trained a model: a result is found again only when the code that decides its numbers is the same."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

_DECIDES = (
    *("batch.py", "schema.py", "features", "learning", "models", "objectives"),
    *("sources/collate.py", "sources/dataset.py", "sources/groups.py", "on_ray/fit.py", "on_ray/items.py"),
)


@cache
def code_digest() -> str:
    """sha256 over the syntax trees of the modules that decide a trained model's numbers."""
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
