"""Read a bundle back and prove that it is whole: hashes, fingerprints, strict weights, golden scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rayrank.batch import Catalogue
from rayrank.bundle.golden import limit_of, rescore, worst
from rayrank.bundle.info import (
    ENCODER,
    FEATURES,
    FORMAT,
    GOLDEN,
    GRAPH,
    GRAPHS,
    ITEM_TABLE,
    ITEMS,
    MANIFEST,
    PAST,
    USERS,
    WEIGHTS,
    BundleInfo,
    local_folder,
    sha256_of,
)
from rayrank.bundle.past import past_of
from rayrank.config import ConfigError, parse
from rayrank.features.derived import ItemPast
from rayrank.features.state import FeatureState, check_state
from rayrank.models.build import build_ranker
from rayrank.models.encoder import TextEncoder, build_encoder
from rayrank.models.onnx_encoder import OnnxEncoder
from rayrank.models.onnx_ranker import GRAPH_FILES, RequestGraphs, graphs_of
from rayrank.models.ranker import Ranker
from rayrank.schema import past_features
from rayrank.sources.dataset import catalogue_of

_AGAIN = "copy the bundle again, or save it again"


@dataclass(frozen=True)
class Bundle:
    """A loaded model with everything it needs to score; row 0 of the item tables is the unknown item."""

    path: Path
    bundle_id: str
    info: BundleInfo
    model: Ranker
    features: FeatureState
    items_NW: Tensor  # packed item rows, as Ranker.item_vectors gave them
    text_ND: Tensor | None  # text vectors of the items, if the model reads text
    past: ItemPast | None = None  # what @item_ columns are computed from; None without them, and in older bundles
    graphs: RequestGraphs | None = None  # what answers requests in the model's place

    @cached_property
    def items(self) -> pa.Table:
        """The catalogue: ids, titles, texts, encoded features, counts."""
        return pq.read_table(self.path / ITEMS)

    @cached_property
    def users(self) -> pa.Table | None:
        """User ids and encoded features, if the dataset had them."""
        file = self.path / USERS
        return pq.read_table(file) if file.is_file() else None

    def catalogue(self) -> Catalogue:
        """Features, counts, text vectors and, where the model reads them, tokens of the items."""
        given = catalogue_of(self.items, self.info.data_schema)
        return replace(given, vectors_ND=self.text_ND, tokens_NL=self.model.tokens_of(self.items_NW))

    @property
    def tokenizer_folder(self) -> Path | None:
        """Folder with the encoder's tokenizer files; None without an encoder."""
        folder = self.path / ENCODER
        return folder if folder.is_dir() else None


def read_info(path: str | Path) -> BundleInfo:
    """The manifest of a bundle, with nothing else checked.

    Raises:
        ConfigError: no bundle there, or a manifest this version cannot read.
    """
    return _manifest(local_folder(path))[0]


def read_id(path: str | Path) -> str:
    """The id of a bundle: a hash of its manifest, and so of every file of it."""
    return _manifest(local_folder(path))[1]


def load_bundle(path: str | Path, verify: bool = True) -> Bundle:
    """Rebuild the model and refuse a bundle that is damaged or does not reproduce its golden scores.

    ``verify=False`` skips hashes and golden rows, for a directory that this process has verified before.

    Raises:
        ConfigError: names the file, tensor or golden task that is wrong.
    """
    folder = local_folder(path)
    info, bundle_id = _manifest(folder)
    if verify:
        _check_files(folder, info)
    if info.data_schema.fingerprint() != info.schema_fingerprint:
        raise _broken(folder / MANIFEST, "schema_fingerprint must be that of the schema")
    features = _features(folder, info)
    encoder = _encoder(folder, info)
    with torch.random.fork_rng(devices=[]):
        model = build_ranker(info.spec, info.data_schema, info.sizes, encoder)
    _load_weights(model, _tensors(folder / WEIGHTS), folder / WEIGHTS)
    model.requires_grad_(False).eval()
    table = _tensors(folder / ITEM_TABLE)
    if len(table["packed"]) != info.sizes.items:
        raise _broken(folder / ITEM_TABLE, f"must hold {info.sizes.items} rows, found {len(table['packed'])}")
    past, graphs = _past(folder, info), _graphs(folder, info)
    bundle = Bundle(folder, bundle_id, info, model, features, table["packed"], table.get("text"), past, graphs)
    if verify:
        _check_golden(bundle)
    return bundle


def _manifest(folder: Path) -> tuple[BundleInfo, str]:
    file = folder / MANIFEST
    if not file.is_file():
        raise ConfigError(str(folder), None, f"no bundle here: {MANIFEST} is missing", "train one, or correct the path")
    text = file.read_bytes()
    try:
        raw = json.loads(text)
    except ValueError:
        raise _broken(file, "must be JSON") from None
    found = raw.get("format") if isinstance(raw, dict) else None
    if found != FORMAT:
        raise ConfigError(
            str(file), found, f"this version reads bundle format {FORMAT}", "use the version that wrote it"
        )
    return parse(BundleInfo, raw, origin=str(file)), hashlib.sha256(text).hexdigest()[:16]


def _check_files(folder: Path, info: BundleInfo) -> None:
    for name, expected in info.files.items():
        file = folder / name
        if not file.is_file():
            raise _broken(file, "file of the bundle is missing")
        if sha256_of(file) != expected:
            raise _broken(file, "sha256 differs from the one in bundle.json: the file was changed or damaged")


def _features(folder: Path, info: BundleInfo) -> FeatureState:
    file = folder / FEATURES
    try:
        state = FeatureState.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        raise _broken(file, "must hold the feature state") from None
    if missing := check_state(state, info.data_schema):
        raise _broken(file, f"lacks the features {', '.join(missing)}")
    return state


def _encoder(folder: Path, info: BundleInfo) -> TextEncoder | None:
    if info.encoder is None:
        return None
    if info.encoder.backend == "torch":
        return build_encoder(info.encoder.config)
    file = folder / ENCODER / GRAPH
    if not file.is_file():
        raise _broken(file, "file of the bundle is missing")
    return OnnxEncoder(file.read_bytes(), info.encoder.config)


def _graphs(folder: Path, info: BundleInfo) -> RequestGraphs | None:
    files = {name: folder / GRAPHS / name for name in GRAPH_FILES} if info.backend == "onnx" else {}
    for file in files.values():
        if not file.is_file():
            raise _broken(file, "file of the bundle is missing")
    return graphs_of({name: file.read_bytes() for name, file in files.items()})


def _past(folder: Path, info: BundleInfo) -> ItemPast | None:
    file = folder / PAST
    if not past_features(info.data_schema) or PAST not in info.files:  # saved before bundles had it
        return None
    try:
        return past_of(_tensors(file), info.data_schema)
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise _broken(file, str(error)) from None


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise _broken(file, f"must be a readable safetensors file ({error})") from None


def _load_weights(model: Ranker, found: Mapping[str, Tensor], file: Path) -> None:
    """Strict load that names the first leaf which does not fit, and both shapes."""
    expected = model.state_dict()
    if not model.spec.inputs.user_id:  # a table without use, which older bundles hold
        found = {name: value for name, value in found.items() if name != "static.user_id.weight"}
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise _broken(file, f"leaf {name} {tuple(expected[name].shape)} of the model is missing on disk")
        if name not in expected:
            raise _broken(file, f"leaf {name} {tuple(found[name].shape)} on disk is no leaf of the model")
        here, there = expected[name], found[name]
        if here.shape != there.shape or here.dtype != there.dtype:
            shapes = f"{tuple(there.shape)} {there.dtype} on disk, {tuple(here.shape)} {here.dtype} in the model"
            raise _broken(file, f"leaf {name} has shape {shapes}")
    model.load_state_dict(dict(found), strict=True, assign=True)


def _check_golden(bundle: Bundle) -> None:
    file = bundle.path / GOLDEN
    golden, scoring = _tensors(file), (bundle.model, bundle.graphs)
    for name, scores in rescore(scoring, golden, bundle.catalogue(), bundle.items_NW).items():
        if name not in golden:
            raise _broken(file, f"holds no golden rows for {name.removeprefix('out.')}")
        gap = worst(golden[name], scores)
        limit = limit_of(name, bundle.info.dtype, bundle.items_NW.device.type)
        if gap > limit:
            rule = f"golden {name.removeprefix('out.')} differs by {gap:.2g}, more than {limit:g}"
            raise _broken(file, f"{rule}: this bundle does not reproduce its own scores")


def _broken(file: Path, rule: str) -> ConfigError:
    return ConfigError(str(file), None, rule, _AGAIN)
