"""A release: the student, teacher, fusion weights and dataset that are served, swapped and rolled back as a whole.

Layout: ``<releases>/<release_id>/release.json`` and ``<releases>/champion.json`` (an alias: ``{"release_id": …}``).
Knows nothing about what is inside a bundle.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from rayrank.config import Config, ConfigError, DataPath, parse

CHAMPION = "champion"
"""The alias that serving follows unless told otherwise."""
_RELEASE_FILE = "release.json"


class Release(Config):
    """What one ranking service consists of; named in every response."""

    format: int = Field(1, ge=1, le=1, description="format version of this file")
    release_id: str = Field(
        description="name of the release: letters, digits, '-', '_' and '.'", pattern=r"^[\w.-]{1,80}$"
    )
    created: str = Field("", description="when it was made, ISO 8601, UTC")
    student: DataPath = Field(
        description="bundle of the pre-ranker; relative paths start at the folder of release.json"
    )
    teacher: DataPath | None = Field(None, description="bundle of the re-ranker; None: the student's order is final")
    student_id: str | None = Field(None, description="bundle id that must be found at `student` (None: any)")
    teacher_id: str | None = Field(None, description="bundle id that must be found at `teacher` (None: any)")
    fusion: dict[str, float] = Field(description="event task -> weight w of the fused score Σ w·s", min_length=1)
    dataset: DataPath | None = Field(None, description="dataset whose user histories are known to the service")
    metrics: dict[str, float] = Field(default_factory=dict, description="what the gates saw when it was promoted")
    note: str = Field("", description="free text")


def save_release(releases: str | Path, release: Release) -> Path:
    """Write ``<releases>/<release_id>/release.json`` atomically; returns its path. Does not move any alias."""
    path = _local(releases) / release.release_id / _RELEASE_FILE
    _write_json(path, release.model_dump(mode="json"))
    return path


def set_alias(releases: str | Path, release_id: str, alias: str = CHAMPION) -> Path:
    """Point ``<releases>/<alias>.json`` at a saved release, atomically.

    Raises:
        ConfigError: the release was never saved.
    """
    folder = _local(releases)
    if not (folder / release_id / _RELEASE_FILE).is_file():
        raise ConfigError(
            str(folder),
            release_id,
            "an alias must name a saved release",
            f"one of: {', '.join(_saved(folder)) or 'none saved'}",
        )
    path = folder / f"{alias}.json"
    _write_json(path, {"release_id": release_id})
    return path


def load_release(path: str | Path, alias: str = CHAMPION) -> Release:
    """Read a release; ``student``, ``teacher`` and ``dataset`` come back as absolute paths (URLs stay).

    ``path`` is the releases folder (the alias is followed), one release's folder, or a ``release.json``.

    Raises:
        ConfigError: nothing there, unreadable, or a key is wrong.
    """
    file = _find(_local(path), alias)
    release = parse(Release, _read_json(file), origin=str(file))
    places = {name: _absolute(file.parent, getattr(release, name)) for name in ("student", "teacher", "dataset")}
    return release.model_copy(update=places)


def champion(releases: str | Path, alias: str = CHAMPION) -> Release | None:
    """The release that the alias names, or None where nothing was promoted yet."""
    if not (_local(releases) / f"{alias}.json").is_file():
        return None
    return load_release(releases, alias)


def releases_folder(path: str | Path) -> Path:
    """The folder of all releases, told by itself, by one release's folder or by its ``release.json``."""
    place = _local(path)
    release = place.parent if place.name == _RELEASE_FILE else place
    return release.parent if (release / _RELEASE_FILE).is_file() else place


def _local(path: str | Path) -> Path:
    if "://" in str(path):
        raise ConfigError(str(path), None, "releases lie on a local or mounted disk", "copy them, or mount the bucket")
    return Path(path)


def _find(path: Path, alias: str) -> Path:
    if path.is_file():
        return path
    if (path / _RELEASE_FILE).is_file():
        return path / _RELEASE_FILE
    pointer = path / f"{alias}.json"
    if not pointer.is_file():
        fix = "run the promote job first, or give a folder with release.json"
        raise ConfigError(str(path), None, f"no release here: neither {_RELEASE_FILE} nor {alias}.json", fix)
    name = _read_json(pointer).get("release_id")
    file = path / str(name) / _RELEASE_FILE
    if not isinstance(name, str) or not file.is_file():
        raise ConfigError(
            str(pointer),
            name,
            "the alias must name a saved release",
            f"one of: {', '.join(_saved(path)) or 'none saved'}",
        )
    return file


def _saved(folder: Path) -> list[str]:
    return sorted(p.parent.name for p in folder.glob(f"*/{_RELEASE_FILE}"))


def _absolute(base: Path, place: str | None) -> str | None:
    if place is None or "://" in place:
        return place
    return str((base / place).resolve())


def _read_json(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(str(file), None, f"must be readable JSON ({type(error).__name__})", "promote again") from None
    if not isinstance(raw, dict):
        raise ConfigError(str(file), type(raw).__name__, "top level must be an object", "promote again")
    return raw


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, path)
