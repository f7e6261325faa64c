"""Encode once: every item text is encoded at the start, then a sampled share of a step's items with gradient.

Vectors of the other items come from the cache, at most some steps old (bounded staleness). Ranks exchange what they
encoded, so that all hold the same cache.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rayrank.batch import Catalogue, SequenceBatch
from rayrank.learning.collectives import Collectives
from rayrank.learning.forward import Fresh
from rayrank.models.encoder import TextEncoder
from rayrank.models.noise import Noise
from rayrank.models.ranker import Ranker


def encoder_of(model: Ranker) -> TextEncoder | None:
    """The model's text encoder, when it has one and uses it."""
    encoder = getattr(model, "encoder", None)
    return encoder if isinstance(encoder, TextEncoder) and model.spec.inputs.text else None


def encode_catalogue(model: Ranker, catalogue: Catalogue) -> Catalogue:
    """The catalogue with the encoder's vector of every text; as it is when the model has no encoder."""
    encoder = encoder_of(model)
    if encoder is None or catalogue.token_ids is None or catalogue.token_offsets is None:
        return catalogue
    with torch.no_grad():
        rows = torch.arange(len(catalogue), device=catalogue.token_ids.device)
        vectors = encoder.encode(catalogue.token_ids, catalogue.token_offsets, rows)
    return replace(catalogue, vectors_ND=vectors)


def is_trained(model: Ranker) -> bool:
    """Whether texts must be encoded anew while training."""
    encoder = encoder_of(model)
    return encoder is not None and any(p.requires_grad for p in encoder.parameters())


def choose_rows(batches: list[SequenceBatch], share: float, noise: Noise) -> Tensor:
    """int64 (R,), rising: this rank's items that are encoded anew. The choice belongs to the item, not to the rank."""
    items = torch.unique(torch.cat([batch.events.item_BT.flatten() for batch in batches]))
    items = items[items > 0]
    return items[noise.uniform("refresh", items) < share]


def encode_fresh(model: Ranker, catalogue: Catalogue, rows: Tensor) -> tuple[Tensor, Fresh]:
    """Encode rows with gradient: (the vectors with their graph, a leaf that collects the gradient of every lane)."""
    encoder = encoder_of(model)
    assert encoder is not None
    assert catalogue.token_ids is not None
    assert catalogue.token_offsets is not None
    vectors = encoder.encode(catalogue.token_ids, catalogue.token_offsets, rows)
    return vectors, Fresh(rows, vectors.detach().requires_grad_(True))


def write_back(catalogue: Catalogue, fresh: Fresh | None, collectives: Collectives) -> None:
    """Put the new vectors of all ranks into the cache, in rank order."""
    assert catalogue.vectors_ND is not None
    mine = None if fresh is None else (fresh.rows_R.cpu(), fresh.vectors_RD.detach().cpu())
    for found in collectives.all_gather_objects(mine):
        if found is not None:
            rows, vectors = (x.to(catalogue.vectors_ND.device) for x in found)
            catalogue.vectors_ND[rows] = vectors
