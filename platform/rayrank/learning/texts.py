"""Encode once: every item text is encoded at the start, then a sampled share of a step's items with gradient.

Vectors of the other items come from the cache, at most some steps old (bounded staleness). What is encoded in a step is
decided from what all ranks need and divided among them, so the numbers do not depend on how many there are; vectors and
their gradients are exchanged, so all ranks hold the same cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rayrank.batch import Catalogue, SequenceBatch
from rayrank.learning.collectives import Collectives
from rayrank.learning.forward import Fresh
from rayrank.learning.negatives import Negatives
from rayrank.learning.spec import LearningSpec
from rayrank.models.encoder import TextEncoder
from rayrank.models.joint import first_tokens
from rayrank.models.noise import Noise
from rayrank.models.ranker import Ranker


def encoder_of(model: Ranker) -> TextEncoder | None:
    """The model's text encoder, when it has one and uses it."""
    encoder = getattr(model, "encoder", None)
    return encoder if isinstance(encoder, TextEncoder) and model.spec.inputs.text else None


def trained_encoder(model: Ranker) -> TextEncoder | None:
    """The model's text encoder, when texts must be encoded anew while training."""
    encoder = encoder_of(model)
    return encoder if encoder is not None and any(p.requires_grad for p in encoder.parameters()) else None


def encode_catalogue(model: Ranker, catalogue: Catalogue) -> Catalogue:
    """The catalogue with the encoder's vector of every text; as it is when the model has no encoder."""
    encoder = encoder_of(model)
    if encoder is None or catalogue.token_ids is None:
        return catalogue
    with torch.no_grad():
        vectors = _encoded(encoder, catalogue, torch.arange(len(catalogue), device=catalogue.token_ids.device))
    return replace(catalogue, vectors_ND=vectors)


def with_tokens(model: Ranker, catalogue: Catalogue) -> Catalogue:
    """The catalogue with the first tokens of every text, for a model that reads tokens."""
    if not model.item_tokens or catalogue.token_ids is None or catalogue.token_offsets is None:
        return catalogue
    tokens_NL = first_tokens(catalogue.token_ids, catalogue.token_offsets, model.item_tokens)
    return replace(catalogue, tokens_NL=tokens_NL)


class TextCache:
    """Text vectors of the catalogue while the encoder is trained; equal on every rank.

    Every step calls :meth:`choose`, :meth:`encode`, and after the losses' backward passes :meth:`learn`, on all ranks.
    """

    def __init__(self, encoder: TextEncoder, catalogue: Catalogue, spec: LearningSpec, ranks: Collectives) -> None:
        self.encoder, self.spec, self.ranks = encoder, spec, ranks
        self.catalogue = _with_frozen_part(encoder, catalogue)
        self.encoded_at_N = torch.zeros(len(catalogue), dtype=torch.int64, device=catalogue.count_N.device)
        self._graph: tuple[Tensor, Tensor] | None = None  # places of this rank's vectors, the vectors

    def choose(self, lanes: Sequence[SequenceBatch], negatives: Negatives | None, noise: Noise) -> Tensor:
        """int64 (R,), rising: the items that are encoded anew in the step, the same on every rank."""
        wanted = [batch.events.item_BT.flatten() for batch in lanes]
        for batch in lanes if negatives is not None else ():
            wanted += [items.flatten() for items in negatives.items(batch)]  # type: ignore[union-attr]
        mine = torch.unique(torch.cat(wanted)).cpu() if wanted else torch.zeros(0, dtype=torch.int64)
        items = torch.unique(torch.cat(self.ranks.all_gather_objects(mine)))
        items = items[items > 0].to(self.encoded_at_N.device)
        if self.spec.exact:
            return items
        spec = self.spec.refresh
        age = (noise.step - self.encoded_at_N[items]).clamp_min(1)
        need = age.float() if spec.by == "need" else torch.ones(len(items), device=items.device)
        share = need / need.mean() * spec.share
        return items[(noise.uniform("refresh", items) < share) | (age >= spec.max_age)]

    def encode(self, rows_R: Tensor) -> Fresh | None:
        """The vectors of items, each from one of the ranks: a leaf that collects the gradients of this rank's lanes."""
        self._graph = None
        if not len(rows_R):
            return None
        offsets = self.catalogue.token_offsets
        assert offsets is not None
        by_length = torch.argsort((offsets[1:] - offsets[:-1])[rows_R], stable=True)
        world, rank = self.ranks.world, self.ranks.rank
        place = by_length[rank::world]
        mine = _encoded(self.encoder, self.catalogue, rows_R[place])
        vectors_RD = mine.new_zeros(len(rows_R), mine.shape[1])
        for other, found in enumerate(self.ranks.all_gather_objects(mine.detach().cpu())):
            vectors_RD[by_length[other::world]] = found.to(vectors_RD.device)
        self._graph = place, mine
        return Fresh(rows_R, vectors_RD.requires_grad_(True))

    def learn(self, fresh: Fresh | None, step: int) -> None:
        """Take what all ranks' losses want of the vectors back through the encoder; keep the vectors."""
        if fresh is None or self._graph is None:
            return
        leaf, (place, mine) = fresh.vectors_RD, self._graph
        gradient = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
        self.ranks.all_reduce_sum(gradient)
        if len(place):
            torch.autograd.backward(mine, gradient[place])
        self._graph = None
        assert self.catalogue.vectors_ND is not None
        self.catalogue.vectors_ND[fresh.rows_R] = leaf.detach()
        self.encoded_at_N[fresh.rows_R] = step

    def tensors(self) -> dict[str, Tensor]:
        """What a snapshot needs to go on."""
        assert self.catalogue.vectors_ND is not None
        return {"texts/vectors": self.catalogue.vectors_ND, "texts/encoded_at": self.encoded_at_N}

    def put_back(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what :meth:`tensors` gave, without their prefix ``texts/``."""
        device = self.encoded_at_N.device
        self.catalogue = replace(self.catalogue, vectors_ND=tensors["vectors"].to(device, copy=True))
        self.encoded_at_N = tensors["encoded_at"].to(device, copy=True)


def _encoded(encoder: TextEncoder, catalogue: Catalogue, rows: Tensor) -> Tensor:
    assert catalogue.token_ids is not None
    assert catalogue.token_offsets is not None
    return encoder.encode(catalogue.token_ids, catalogue.token_offsets, rows, catalogue.below_TW)


def _with_frozen_part(encoder: TextEncoder, catalogue: Catalogue) -> Catalogue:
    """The catalogue with what lies below the trained layers, unless it came with it."""
    if catalogue.below_TW is not None or catalogue.token_ids is None or catalogue.token_offsets is None:
        return catalogue
    if not encoder.frozen_layers:
        return catalogue
    ids, offsets = catalogue.token_ids, catalogue.token_offsets
    below_TW = torch.zeros(len(ids), encoder.width, device=ids.device)
    encoder.fill_frozen_part(ids, offsets, torch.arange(len(offsets) - 1, device=ids.device), below_TW)
    return replace(catalogue, below_TW=below_TW)
