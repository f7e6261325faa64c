"""Write a bundle: everything into a temporary folder, the manifest last, one rename at the end."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import Tensor

from rayrank.batch import Catalogue
from rayrank.bundle.card import model_card
from rayrank.bundle.golden import golden_rows
from rayrank.bundle.info import (
    CARD,
    ENCODER,
    FEATURES,
    GOLDEN,
    GRAPHS,
    ITEM_TABLE,
    ITEMS,
    MANIFEST,
    PAST,
    USERS,
    WEIGHTS,
    BundleInfo,
    Compression,
    EncoderInfo,
    Parent,
    local_folder,
    sha256_of,
)
from rayrank.bundle.past import write_past
from rayrank.bundle.revision import code_revision
from rayrank.config import ConfigError
from rayrank.features.derived import ItemPast
from rayrank.features.state import FeatureState
from rayrank.models.encoder import TextEncoder
from rayrank.models.onnx_ranker import graphs_of
from rayrank.models.ranker import Ranker
from rayrank.schema import DatasetSchema, past_features

_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "pyarrow", "numpy", "ray", "rayrank")


@dataclass(frozen=True)
class BundleParts:
    """What a bundle holds besides the model itself."""

    schema: DatasetSchema
    features: FeatureState
    catalogue: Catalogue  # as the model reads it: features, counts, texts' vectors and/or tokens
    items: pa.Table  # the dataset's items.parquet
    data_fingerprint: str
    window: int
    users: pa.Table | None = None  # the dataset's users.parquet
    past: ItemPast | None = None  # the dataset's, where its schema has @item_ columns
    metrics: Mapping[str, float] = field(default_factory=dict)
    parents: tuple[Parent, ...] = ()
    encoder: EncoderInfo | None = None
    tokenizer: Mapping[str, bytes] = field(default_factory=dict)  # files of the encoder: tokenizer.json, a graph
    config: Mapping[str, Any] = field(default_factory=dict)  # resolved config of the run
    compression: Compression | None = None  # how it was made smaller, if it was
    graphs: Mapping[str, bytes] = field(default_factory=dict)  # of the ranker, for ONNX Runtime; none: torch


def save_bundle(path: str | Path, model: Ranker, parts: BundleParts) -> BundleInfo:
    """Write ``model`` to the directory ``path``; a bundle already there is replaced in one step.

    Raises:
        ConfigError: the parent folder cannot be written.
    """
    target = local_folder(path)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(str(target), None, f"must be writable ({error.strerror})", "choose another folder") from None
    try:
        info = _write(temporary, model, parts)
        _swap(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return info


def _write(folder: Path, model: Ranker, parts: BundleParts) -> BundleInfo:
    catalogue, items_NW, golden = _tables(model, parts)
    weights = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    table = {"packed": items_NW.cpu().contiguous()}
    if catalogue.vectors_ND is not None:
        table["text"] = catalogue.vectors_ND.detach().float().cpu().clone().contiguous()
    save_file(table, folder / ITEM_TABLE)
    save_file(golden, folder / GOLDEN)
    pq.write_table(parts.items, folder / ITEMS, compression="zstd")
    if parts.users is not None:
        pq.write_table(parts.users, folder / USERS, compression="zstd")
    if past_features(parts.schema):
        assert parts.past is not None, "@item_ columns are served from the dataset's past"
        write_past(folder / PAST, parts.past)
    _write_text(folder / FEATURES, parts.features.model_dump_json(indent=1))
    for inside, contents in ((ENCODER, parts.tokenizer), (GRAPHS, parts.graphs)):
        for name, content in contents.items():
            (folder / inside).mkdir(exist_ok=True)
            (folder / inside / name).write_bytes(content)
    info = _info(model, parts)
    _write_text(folder / CARD, model_card(info, len(parts.items)))
    files = {str(p.relative_to(folder)): sha256_of(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    info = info.model_copy(update={"files": files})
    _write_text(folder / MANIFEST, info.model_dump_json(indent=1))
    mode = (folder / ITEMS).stat().st_mode
    for file in folder.glob("*.safetensors"):  # the library writes them for their owner alone
        file.chmod(mode)
    return info


def _tables(model: Ranker, parts: BundleParts) -> tuple[Catalogue, Tensor, dict[str, Tensor]]:
    """Catalogue with the text vectors that the model makes of its tokens, packed item rows, golden rows."""
    training = model.training
    model.eval()
    catalogue = parts.catalogue
    with torch.inference_mode():
        encoder = getattr(model, "encoder", None)
        if encoder is not None and catalogue.vectors_ND is None and catalogue.token_ids is not None:
            assert catalogue.token_offsets is not None
            every = torch.arange(len(catalogue))
            text_ND = encoder.encode(catalogue.token_ids, catalogue.token_offsets, every)
            catalogue = replace(catalogue, vectors_ND=text_ND)
        items_NW = model.item_vectors(catalogue).float()
        catalogue = replace(catalogue, tokens_NL=model.tokens_of(items_NW))
        golden = golden_rows((model, graphs_of(parts.graphs)), parts.window, catalogue, items_NW)
    model.train(training)
    return catalogue, items_NW, golden


def _info(model: Ranker, parts: BundleParts) -> BundleInfo:
    return BundleInfo(
        role="student" if model.spec.is_student else "teacher",
        spec=model.spec,
        sizes=model.sizes,
        data_schema=parts.schema,
        schema_fingerprint=parts.schema.fingerprint(),
        data_fingerprint=parts.data_fingerprint,
        window=parts.window,
        metrics={name: value for name, value in parts.metrics.items() if isfinite(value)},  # JSON knows no NaN
        parents=parts.parents,
        encoder=parts.encoder,
        config=dict(parts.config),
        compression=parts.compression,
        backend="onnx" if parts.graphs else "torch",
        dtype=_dtype(model),
        parameters=sum(p.numel() for p in model.parameters()),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        git_revision=code_revision(),
        libraries={name: found for name in _LIBRARIES if (found := _version(name))},
    )


def _dtype(model: Ranker) -> Literal["float32", "bfloat16", "int8"]:
    encoder = getattr(model, "encoder", None)
    match encoder.config().get("rounding") if isinstance(encoder, TextEncoder) else None:
        case "bfloat16":
            return "bfloat16"
        case "int8_dynamic" | "int8_static":
            return "int8"
        case _:
            return "float32"


def _swap(temporary: Path, target: Path) -> None:
    """Rename into place. A directory cannot replace a full one, so the old bundle steps aside first."""
    old = target.with_name(f".{target.name}.old-{uuid.uuid4().hex[:8]}")
    if target.exists():
        os.replace(target, old)
    try:
        os.replace(temporary, target)
    except OSError:
        if old.exists():
            os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
