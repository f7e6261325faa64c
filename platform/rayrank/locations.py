"""Where relative paths of a config point to.

A job started by hand resolves them against the current folder. A job submitted to a cluster runs in an unpacked copy
of the working folder that is thrown away, so relative paths there are refused unless ``RAYRANK_BASE`` names an
absolute folder or URL. Files that travel with the code (search spaces, schemas, the playground) are the exception: they
are found in the copy. Knows path fields and the environment it is given; opens nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TypeVar

from rayrank.config import Config, ConfigError, path_fields, replace

SUBMITTED_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the driver of a submitted job."""

SQLITE = "sqlite:///"
CODE = ("jobs", "serve_apps", "tune_spaces")
"""Folders that are shipped with the code; nothing is written there."""

C = TypeVar("C", bound=Config)


def base_folder(environment: Mapping[str, str]) -> str | None:
    """``RAYRANK_BASE``, else the current folder; None in a submitted job without a base.

    Raises:
        ConfigError: ``RAYRANK_BASE`` is neither absolute nor a URL.
    """
    base = environment.get("RAYRANK_BASE", "")
    if base:
        if not is_absolute(base):
            raise ConfigError(
                "RAYRANK_BASE", base, "must be an absolute folder or a URL", "for example s3://bucket/runs"
            )
        return base.rstrip("/") or "/"
    return None if SUBMITTED_JOB in environment else str(Path.cwd())


def is_absolute(path: str) -> bool:
    """True for absolute local paths and for URLs that do not name a relative file."""
    if path.startswith(SQLITE):
        return path.startswith(SQLITE + "/") or path == SQLITE + ":memory:"
    return "://" in path or PurePosixPath(path).is_absolute()


def resolve(path: str, base: str) -> str:
    """``path`` itself when absolute or a URL, else below ``base``; ``~`` is expanded."""
    if path.startswith("~"):
        path = str(Path(path).expanduser())
    if is_absolute(path):
        return path
    if path.startswith(SQLITE):
        return f"{SQLITE}{resolve(path.removeprefix(SQLITE), base)}"
    joined = f"{base}/{path}"
    return joined if "://" in base else str(Path(joined).resolve())


def resolve_paths(config: C, base: str | None) -> C:
    """A copy of ``config`` whose path fields are absolute.

    Raises:
        ConfigError: a relative path and no base (a submitted job).
    """
    changes: dict[str, str] = {}
    for name, path in path_fields(config).items():
        if path.partition("/")[0] in CODE and Path(path).is_file():
            changes[name] = str(Path(path).resolve())
            continue
        if base is None and not is_absolute(path) and not path.startswith("~"):
            rule = "relative paths in a submitted job would land in a working copy that is thrown away"
            raise ConfigError(name, path, rule, "set RAYRANK_BASE in the runtime env, or write an absolute path or URL")
        resolved = resolve(path, base or "/")
        if resolved != path:
            changes[name] = resolved
    return replace(config, changes) if changes else config
