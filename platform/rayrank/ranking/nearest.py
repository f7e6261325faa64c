"""An HNSW index of the items' retrieval vectors, for catalogues so large that the exact product takes too long.

Malkov and Yashunin, 2016, by the library usearch. Inner products become cosines by one more number (Bachrach et al.,
2014). An index is built once, kept in a file and mapped by all replicas of a machine. It is measured against the exact
product when built, and refused where it finds too little. Knows vectors and rows; nothing about requests.
"""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from rayrank.config import Config, ConfigError, DataPath
from rayrank.ranking import durable
from rayrank.ranking.private import private_folder

AT = 100
"""Recall is measured among so many."""
_FOLDER = "flow.sources.index.folder"
_log = logging.getLogger(__name__)


class IndexSpec(Config):
    """When retrieval by the user's vector is approximate, and how near it must come."""

    exact_below: int = Field(2_000_000, ge=1, description="catalogues of fewer items are searched exactly")
    recall: float = Field(0.99, gt=0, le=1, description="least recall@100 against exact; an index with less is refused")
    width: int = Field(2000, ge=1, description="candidates of a search: more finds more and takes longer")
    neighbours: int = Field(16, ge=2, le=256, description="links of an item")
    build_width: int = Field(128, ge=2, description="candidates when an item's links are chosen")
    probes: int = Field(200, ge=1, description="sampled users whose recall is measured when an index is built")
    folder: DataPath | None = Field(
        None, description="local folder where built indexes are kept; None: this user's temporary files of each machine"
    )


@dataclass(frozen=True)
class Nearest:
    """The index of one table of vectors, and what it found of the sampled users' 100 best."""

    index: Any
    recall: float

    def find(self, vector_R: np.ndarray, count: int) -> np.ndarray:
        """int64 (at most ``count``,): rows of about the largest inner products, best first."""
        query = np.append(vector_R, np.float32(0)).astype(np.float32)
        return np.asarray(self.index.search(query, count).keys, np.int64)


def open_nearest(items_NR: np.ndarray, spec: IndexSpec, sample: Callable[[int], np.ndarray]) -> Nearest | None:
    """The index of these vectors, from its file or built now; None: it finds too little, so retrieval stays exact.

    ``sample``: n -> float32 (n, R) vectors of users, asked only where an index is built. Row 0 (unknown) is left out.

    Raises:
        ConfigError: the package usearch is missing, the folder cannot be written, or what lies there cannot be read.
    """
    place, index = _place(items_NR, spec), _empty(items_NR.shape[1], spec)
    told, file = place.with_suffix(".json"), place.with_suffix(".usearch")
    if not told.exists():
        _build(items_NR, spec, sample(spec.probes), (told, file))
    try:
        recall = float(json.loads(told.read_text())[f"recall@{AT}"])
        index.view(str(file))
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        rule = f"the index {file.name} cannot be read ({type(error).__name__})"
        fix = f"remove {told.name}: the index is built again"
        raise ConfigError(_FOLDER, str(file.parent), rule, fix) from None
    found = f"recall@{AT} {recall:.4f} over {spec.probes} sampled users, {len(items_NR) - 1} items ({file.name})"
    if recall < spec.recall:
        _log.warning("retrieval stays exact: its index has %s, and %g is asked", found, spec.recall)
        return None
    _log.info("retrieval by an index: %s", found)
    return Nearest(index, recall)


def _place(items_NR: np.ndarray, spec: IndexSpec) -> Path:
    """The name tells the vectors and everything that the index depends on."""
    shape = spec.model_dump(include={"width", "neighbours", "build_width", "probes"})
    digest = hashlib.sha256(json.dumps([shape, items_NR.shape]).encode())
    digest.update(np.ascontiguousarray(items_NR).data)
    folder = Path(spec.folder) if spec.folder else private_folder(_FOLDER)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        rule = f"must be a folder that can be written ({error.strerror})"
        raise ConfigError(_FOLDER, str(folder), rule, "name another one") from None
    return folder / f"items-{digest.hexdigest()[:16]}"


def _empty(size: int, spec: IndexSpec) -> Any:
    try:
        from usearch.index import Index
    except ImportError:
        rule = f"catalogues of {spec.exact_below} items and more are searched by the package usearch"
        fix = "pip install 'rayrank[index]', or raise flow.sources.index.exact_below"
        raise ConfigError("flow.sources.index", None, rule, fix) from None
    return Index(
        ndim=size + 1,
        metric="ip",
        dtype="f32",
        connectivity=spec.neighbours,
        expansion_add=spec.build_width,
        expansion_search=spec.width,
    )


def _build(items_NR: np.ndarray, spec: IndexSpec, users_UR: np.ndarray, files: tuple[Path, Path]) -> None:
    """Write the index, then what it is worth: the second file says that the first one is whole."""
    told, file = files
    index = _empty(items_NR.shape[1], spec)
    _log.info("building an index of %d items", len(items_NR) - 1)
    index.add(np.arange(1, len(items_NR)), _of_equal_length(items_NR[1:]))
    recall = _recall(Nearest(index, 0.0), items_NR, users_UR)
    _keep(file, lambda mine: index.save(str(mine)))
    _keep(told, lambda mine: mine.write_text(json.dumps({f"recall@{AT}": recall})))


def _keep(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file that is whole and on disk under its name, or not there; nothing else of it stays."""
    mine = file.with_name(f"{file.name}.{uuid.uuid4().hex}")
    try:
        write(mine)
        durable.put(mine, file)
    except (OSError, RuntimeError) as error:  # the library says what the disk says as RuntimeError
        rule = f"{file.name} cannot be written ({error})"
        raise ConfigError(_FOLDER, str(file.parent), rule, "make room there, or name another one") from None
    finally:
        mine.unlink(missing_ok=True)


def _of_equal_length(items_NR: np.ndarray) -> np.ndarray:
    """float32 (N, R + 1): one more number makes all lengths 1, so that the order by cosine is that by product."""
    squares = np.einsum("nr,nr->n", items_NR, items_NR)
    longest = float(squares.max(initial=0)) or 1.0
    rest = np.sqrt(np.maximum(longest - squares, 0))
    return np.concatenate([items_NR, rest[:, None]], axis=1).astype(np.float32) / np.float32(np.sqrt(longest))


def _recall(nearest: Nearest, items_NR: np.ndarray, users_UR: np.ndarray) -> float:
    """Share of the users' best items by exact product that the index finds among as many."""
    size, shares = min(AT, len(items_NR) - 1), []
    for user_R in users_UR:
        products = items_NR[1:] @ user_R
        best = 1 + np.argpartition(-products, size - 1)[:size]
        shares.append(np.isin(best, nearest.find(user_R, size)).mean())
    return float(np.mean(shares))
