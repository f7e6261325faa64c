"""What a run knows of the items: features, sizes, texts encoded once by all ranks together and kept on disk.

A teacher's vectors come from its encoder, a student's from its teacher's bundle. Knows datasets, encoders and
bundles; knows nothing about how models are trained.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from rayrank.batch import Catalogue
from rayrank.bundle import EncoderInfo, load_bundle, read_info
from rayrank.bundle.info import ITEM_TABLE, MANIFEST
from rayrank.config import ConfigError
from rayrank.learning.collectives import Collectives
from rayrank.learning.texts import encoder_of
from rayrank.models.encoder import TextEncoder
from rayrank.models.spec import CrossSpec, Sizes, item_columns
from rayrank.on_ray.task import FitTask
from rayrank.sources.dataset import Dataset
from rayrank.sources.encoders import (
    MINILM,
    MINILM_SHA256,
    EncoderSpec,
    FolderEncoder,
    FrozenPart,
    HubEncoder,
    LoadedEncoder,
    NoEncoder,
    PackageEncoder,
    cached_vectors,
    resolve_encoder,
    tokenise,
)


@dataclass(frozen=True)
class Items:
    """The catalogue as the model will read it, and what a bundle needs to read new items the same way."""

    catalogue: Catalogue
    sizes: Sizes
    encoder: TextEncoder | None = None
    encoder_info: EncoderInfo | None = None
    tokenizer_files: dict[str, bytes] = field(default_factory=dict)
    teacher_id: str | None = None
    cold: ColdTexts | None = None


@dataclass(frozen=True)
class ColdTexts:
    """An encoder that goes with a student, for items that its table lacks."""

    encoder: TextEncoder
    info: EncoderInfo
    files: dict[str, bytes]


def load_items(
    task: FitTask, dataset: Dataset, collectives: Collectives, device: str, alive: Callable[[], None] = lambda: None
) -> Items:
    """The items of a run. Collective: all ranks call it. The encoder calls ``alive`` with every batch of texts.

    Raises:
        ConfigError: no such encoder; a teacher of other data, or one without text vectors although text is asked for.
    """
    catalogue, teacher_id = dataset.catalogue(), None
    if task.teacher:
        catalogue, teacher_id = _with_teacher(task.teacher, catalogue, dataset, task.model.inputs.text)
    cold = _cold_texts(task, catalogue, teacher_id) if task.cold_encoder else None
    if not task.model.inputs.text or task.encoder is None or catalogue.vectors_ND is not None:
        return Items(catalogue, dataset.sizes(_width(catalogue)), teacher_id=teacher_id, cold=cold)
    texts = ["", *dataset.catalogue_table().column("text").to_pylist()]
    loaded = resolve_encoder(task.encoder, texts)
    if loaded is None:
        return Items(catalogue, dataset.sizes(), teacher_id=teacher_id)
    if len(set(collectives.all_gather_objects(loaded.identity))) > 1:
        raise ConfigError("encoder", None, "every worker must load the same encoder", "give all nodes the same files")
    loaded.network.alive = alive
    tokens = tokenise(texts, loaded.tokenizer_json, loaded.max_tokens)
    vectors = _vectors(_folder(task), loaded, tokens, collectives, device)
    sizes = dataset.sizes(int(vectors.shape[1]))
    if task.model.is_student:
        return Items(replace(catalogue, vectors_ND=vectors), sizes, teacher_id=teacher_id)
    literal = isinstance(task.model, CrossSpec)  # its texts are many items', whose layers mix them from the lowest on
    if literal and not len(tokens[0]):
        raise ConfigError("model.kind", "cross", "no item of the dataset has a text", "prepare it with schema.text")
    below = None if literal else _frozen_part(_folder(task), loaded, tokens, collectives, device)
    catalogue = replace(catalogue, token_ids=tokens[0], token_offsets=tokens[1], vectors_ND=vectors, below_TW=below)
    files = {"tokenizer.json": loaded.tokenizer_json.encode()}
    return Items(catalogue, sizes, loaded.network, _info(task.encoder, loaded), files, teacher_id)


def taught_items(task: FitTask) -> Tensor | None:
    """(N, D) item vectors of ``task.teacher``, where one is named and the objective wants them matched."""
    from safetensors import safe_open

    told = task.objective.distillation
    if told is None or told.matching.items == 0 or not task.teacher:
        return None
    columns = item_columns(read_info(task.teacher).spec)
    with safe_open(Path(task.teacher) / ITEM_TABLE, framework="pt") as table:
        found: Tensor = table.get_slice("packed")[:, columns]
    return found.float().contiguous()


def bundle_id(folder: str) -> str:
    """The id of a bundle: 16 hex digits of its manifest's sha256.

    Raises:
        ConfigError: no bundle there.
    """
    read_info(folder)
    return hashlib.sha256((Path(folder) / MANIFEST).read_bytes()).hexdigest()[:16]


def _with_teacher(folder: str, catalogue: Catalogue, dataset: Dataset, wants_text: bool) -> tuple[Catalogue, str]:
    from safetensors import safe_open

    found, wanted = read_info(folder), dataset.manifest.data_fingerprint
    if found.data_fingerprint != wanted:
        rule = f"the teacher must be trained on this dataset ({wanted[:16]})"
        raise ConfigError("teacher", found.data_fingerprint[:16], rule, "train a teacher on it, or change dataset")
    if wants_text:
        with safe_open(Path(folder) / ITEM_TABLE, framework="pt") as table:
            if "text" in set(table.keys()):
                catalogue = replace(catalogue, vectors_ND=table.get_tensor("text"))
    return catalogue, bundle_id(folder)


def _cold_texts(task: FitTask, catalogue: Catalogue, teacher_id: str | None) -> ColdTexts:
    """The encoder of ``task.cold_encoder``, whose vectors must be of the same kind as the student's table."""
    assert task.cold_encoder
    if not task.model.is_student or catalogue.vectors_ND is None:
        rule = "goes with a student whose item table holds its teacher's text vectors"
        raise ConfigError("cold_encoder", task.cold_encoder, rule, "name such a teacher, or leave it out")
    bundle = load_bundle(task.cold_encoder)
    encoder, info, folder = encoder_of(bundle.model), bundle.info.encoder, bundle.tokenizer_folder
    if teacher_id not in {bundle.bundle_id, *(parent.bundle_id for parent in bundle.info.parents)}:
        rule = f"must be the teacher ({teacher_id}) or be compressed from it"
        raise ConfigError("cold_encoder", task.cold_encoder, rule, "run compress on the teacher")
    if encoder is None or info is None or folder is None:
        raise ConfigError("cold_encoder", task.cold_encoder, "has no text encoder", "name a teacher that reads texts")
    return ColdTexts(encoder, info, {file.name: file.read_bytes() for file in sorted(folder.iterdir())})


def _folder(task: FitTask) -> Path | None:
    return Path(task.cache) if task.cache and "://" not in task.cache else None


def _frozen_part(
    folder: Path | None, loaded: LoadedEncoder, tokens: tuple[Tensor, Tensor], collectives: Collectives, device: str
) -> Tensor | None:
    """(T, W) what lies below the trained layers, from a file that the ranks of a machine fill together.

    None where there is nothing to keep: no trained or no frozen layers, or no folder (the loop has it in memory then).
    """
    trained = any(p.requires_grad for p in loaded.network.parameters())
    if folder is None or not trained or not loaded.network.frozen_layers or not len(tokens[0]):
        return None
    file = FrozenPart.of(folder, loaded, tokens)
    if not all(collectives.all_gather_objects(file.exists())):
        hosts = collectives.all_gather_objects(platform.node())
        peers = [rank for rank, host in enumerate(hosts) if host == hosts[collectives.rank]]
        ids, offsets = tokens[0].to(device), tokens[1].to(device)
        mine = torch.arange(peers.index(collectives.rank), len(offsets) - 1, len(peers), device=device)
        loaded.network.to(device).fill_frozen_part(ids, offsets, mine, file.open())
        collectives.barrier()
        file.keep()
        collectives.barrier()
    return file.read()


def _vectors(
    folder: Path | None, loaded: LoadedEncoder, tokens: tuple[Tensor, Tensor], collectives: Collectives, device: str
) -> Tensor:
    """(N, W) vectors of all texts: from the cache when every rank finds them there, else each rank encodes a share."""
    try:
        found: Tensor | None = cached_vectors(folder, loaded.identity, tokens, _absent)
    except _AbsentError:
        found = None
    if all(collectives.all_gather_objects(found is not None)) and found is not None:
        return found
    ids, offsets = tokens[0].to(device), tokens[1].to(device)
    count = len(offsets) - 1
    mine = torch.arange(collectives.rank, count, collectives.world, device=device)
    network = loaded.network.to(device)
    with torch.no_grad():
        share = network.encode(ids, offsets, mine).cpu()
    vectors = torch.empty(count, share.shape[1])
    for rank, part in enumerate(collectives.all_gather_objects(share)):
        vectors[rank :: collectives.world] = part
    return cached_vectors(folder, loaded.identity, tokens, lambda: vectors) if collectives.rank == 0 else vectors


class _AbsentError(Exception):
    """Not in the cache."""


def _absent() -> Tensor:
    raise _AbsentError


def _info(spec: EncoderSpec, loaded: LoadedEncoder) -> EncoderInfo:
    weights = MINILM_SHA256 if isinstance(spec, PackageEncoder) else None
    config = loaded.network.config()
    return EncoderInfo(name=_name(spec), config=config, max_tokens=loaded.max_tokens, sha256=weights)


def _name(spec: EncoderSpec) -> str:
    match spec:
        case PackageEncoder():
            return MINILM
        case FolderEncoder():
            return Path(spec.path).name
        case HubEncoder():
            return spec.id
        case NoEncoder():
            return "none"
        case _:
            return "tiny"


def _width(catalogue: Catalogue) -> int:
    return 0 if catalogue.vectors_ND is None else int(catalogue.vectors_ND.shape[1])
