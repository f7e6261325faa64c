"""A method and a bundle to the smaller model and what its bundle holds; nothing is judged or written here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import assert_never

import torch

from rayrank.bundle import Bundle, BundleParts, Parent, load_bundle
from rayrank.compression.prune import prune
from rayrank.compression.spec import Bf16, Int8, MethodSpec, Prune
from rayrank.compression.texts import Texts
from rayrank.config import ConfigError
from rayrank.models.encoder import TextEncoder
from rayrank.models.ranker import Ranker
from rayrank.models.rounded import input_ranges, round_weights


def compressed(bundle: Bundle, method: MethodSpec, progress: Callable[[str], None]) -> tuple[Ranker, BundleParts]:
    """The smaller model and the other parts of its bundle; ``bundle`` itself is left as it is.

    Item texts are encoded anew, so a bundle's vectors are always those of its own encoder.

    Raises:
        ConfigError: a method that this model has nothing for, or more units to keep than there are.
    """
    model = load_bundle(bundle.path, verify=False).model
    encoder, texts = getattr(model, "encoder", None), Texts.of(bundle)
    if not isinstance(encoder, TextEncoder) or texts is None:
        rule = f"this {bundle.info.role} has no text encoder to compress"
        raise ConfigError("bundle", str(bundle.path), rule, "give a teacher with item texts")
    _change(encoder, method, texts, progress)
    parts = parts_of(bundle)
    catalogue = replace(parts.catalogue, vectors_ND=None, token_ids=texts.token_ids, token_offsets=texts.offsets)
    assert parts.encoder is not None
    info = parts.encoder.model_copy(update={"config": encoder.config()})
    return model, replace(parts, catalogue=catalogue, encoder=info)


def _change(encoder: TextEncoder, method: MethodSpec, texts: Texts, progress: Callable[[str], None]) -> None:
    network = encoder.network
    if rounding := getattr(network.config, "rounding", None):
        raise ConfigError("bundle", rounding, "this encoder is rounded already", "start from its original")
    match method:
        case Prune():
            prune(encoder, method, texts, progress)
        case Bf16():
            round_weights(network, "bfloat16")
        case Int8(inputs="dynamic"):
            round_weights(network, "int8_dynamic")
        case Int8():
            progress(f"measuring the inputs of linear layers on {method.judged_texts} texts")
            with input_ranges(network) as ranges, torch.no_grad():
                texts.encode(encoder, texts.learnt[: method.judged_texts])
            round_weights(network, "int8_static", ranges)
        case _:
            assert_never(method)


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
