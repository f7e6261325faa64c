"""A method and a bundle to the smaller model and what its bundle holds; nothing is judged or written here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, assert_never, cast

import torch

from rayrank.bundle import Bundle, BundleParts, EncoderInfo, Parent, load_bundle
from rayrank.bundle.info import GRAPH
from rayrank.compression.narrow import narrow
from rayrank.compression.onnx_graph import encoder_graph
from rayrank.compression.prune import prune
from rayrank.compression.ranker_graphs import request_graphs
from rayrank.compression.spec import Bf16, Int8, MethodSpec, Narrow, Onnx, OnnxRanker, Prune
from rayrank.compression.texts import Texts
from rayrank.config import ConfigError
from rayrank.learning.texts import encoder_of
from rayrank.models.encoder import TextEncoder
from rayrank.models.onnx_encoder import OnnxEncoder
from rayrank.models.ranker import Ranker
from rayrank.models.rounded import input_ranges, round_weights
from rayrank.models.spec import CrossSpec, StudentSpec
from rayrank.models.student import Student
from rayrank.sources.dataset import Dataset


def compressed(
    bundle: Bundle, method: MethodSpec, dataset: Dataset, progress: Callable[[str], None]
) -> tuple[Ranker, BundleParts]:
    """The smaller model and the other parts of its bundle; ``bundle`` itself is left as it is.

    ``dataset``: what it was trained on; what a narrower student learns from.

    Raises:
        ConfigError: a method that this model has nothing for, or more units to keep than there are.
    """
    if bundle.graphs is not None:
        raise ConfigError("bundle", str(bundle.path), "its ranker is a graph already", "start from its original")
    match method:
        case OnnxRanker():
            return _with_graphs(bundle, progress)
        case Narrow():
            if not isinstance(bundle.info.spec, StudentSpec):
                rule = "units are known of students of kind: student"
                raise ConfigError("bundle", str(bundle.path), rule, "give one, or choose another method")
            parts, model = parts_of(bundle), cast(Student, bundle.model)
            return narrow(model, method, dataset, parts.catalogue, progress), parts
        case Prune() | Bf16() | Int8() | Onnx():
            return _with_encoder(bundle, method, progress)
        case _:
            assert_never(method)


def _with_graphs(bundle: Bundle, progress: Callable[[str], None]) -> tuple[Ranker, BundleParts]:
    if isinstance(bundle.info.spec, CrossSpec):
        rule = "a cross teacher lays out texts by request, which no graph of fixed operations does"
        raise ConfigError("bundle", str(bundle.path), rule, "give another teacher, or a student")
    progress("making the graphs of user state and candidates")
    graphs = request_graphs(bundle.model, bundle.items_NW.shape[1])
    return bundle.model, replace(parts_of(bundle), graphs=graphs)


def _with_encoder(
    bundle: Bundle, method: Prune | Bf16 | Int8 | Onnx, progress: Callable[[str], None]
) -> tuple[Ranker, BundleParts]:
    """Item texts are encoded anew, so a bundle's vectors are always those of its own encoder."""
    if isinstance(bundle.info.spec, CrossSpec):
        rule = "a cross teacher reads whole requests, and its encoder cannot be judged by the vectors of items"
        raise ConfigError("bundle", str(bundle.path), rule, "give a teacher of kind: teacher")
    if bundle.info.spec.is_student and bundle.info.encoder is not None:
        rule = "a student's encoder speaks the language of its item table, which stays as it is"
        raise ConfigError("bundle", str(bundle.path), rule, "compress its teacher, then distil with it as cold_encoder")
    model: Any = load_bundle(bundle.path, verify=False).model
    encoder, texts, info = encoder_of(model), Texts.of(bundle), bundle.info.encoder
    if encoder is None or texts is None or info is None:
        rule = f"this {bundle.info.role} has no text encoder to compress"
        raise ConfigError("bundle", str(bundle.path), rule, "give a teacher with item texts")
    _check(encoder, info)
    parts = parts_of(bundle)
    match method:
        case Prune():
            prune(encoder, method, texts, progress)
        case Bf16():
            round_weights(encoder.network, "bfloat16")
        case Int8():
            _to_int8(encoder, method, texts, progress)
        case Onnx():
            progress("making the graph")
            model.encoder, graph = _to_onnx(encoder, method, texts)
            parts = replace(parts, tokenizer={**parts.tokenizer, GRAPH: graph})
        case _:
            assert_never(method)
    catalogue = replace(parts.catalogue, vectors_ND=None, token_ids=texts.token_ids, token_offsets=texts.offsets)
    changed = {"config": model.encoder.config(), "backend": "onnx" if isinstance(method, Onnx) else "torch"}
    return model, replace(parts, catalogue=catalogue, encoder=info.model_copy(update=changed))


def _check(encoder: TextEncoder, info: EncoderInfo) -> None:
    done = "onnx" if info.backend == "onnx" else encoder.config().get("rounding")
    if done:
        raise ConfigError("bundle", done, "this encoder is rounded or a graph already", "start from its original")


def _to_int8(encoder: TextEncoder, method: Int8, texts: Texts, progress: Callable[[str], None]) -> None:
    if method.inputs == "dynamic":
        round_weights(encoder.network, "int8_dynamic")
        return
    progress(f"measuring the inputs of linear layers on {method.judged_texts} texts")
    with input_ranges(encoder.network) as ranges, torch.no_grad():
        texts.encode(encoder, texts.learnt[: method.judged_texts])
    round_weights(encoder.network, "int8_static", ranges)


def _to_onnx(encoder: TextEncoder, method: Onnx, texts: Texts) -> tuple[OnnxEncoder, bytes]:
    graph = encoder_graph(encoder, method.int8, texts, method.judged_texts)
    rounding = {} if method.int8 == "none" else {"rounding": f"int8_{method.int8}"}
    return OnnxEncoder(graph, encoder.config() | rounding), graph


def parts_of(bundle: Bundle) -> BundleParts:
    """What a bundle holds besides its model, for a bundle made from it."""
    info, folder = bundle.info, bundle.tokenizer_folder
    files: list[Path] = sorted(folder.iterdir()) if folder is not None else []
    return BundleParts(
        schema=info.data_schema,
        features=bundle.features,
        catalogue=bundle.catalogue(),
        items=bundle.items,
        data_fingerprint=info.data_fingerprint,
        window=info.window,
        users=bundle.users,
        past=bundle.past,
        parents=(*info.parents, Parent(role=info.role, bundle_id=bundle.bundle_id)),
        encoder=info.encoder,
        tokenizer={file.name: file.read_bytes() for file in files},
        config=info.config,
    )
