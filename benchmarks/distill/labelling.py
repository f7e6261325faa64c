"""Targets labelled a second: the label job's teacher against a loop over padded rows, one target each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.distill.clock import timed
from benchmarks.train.encoder import padded_vectors, plain_network
from benchmarks.train.timing import Texts
from rayrank.batch import FAR, Catalogue, Queries, SequenceBatch
from rayrank.bundle import Bundle
from rayrank.learning.plan import take
from rayrank.metrics.agreement import spearman
from rayrank.models.encoder import TextEncoder
from rayrank.models.ranker import take_rows
from rayrank.on_ray.label import Labeller
from rayrank.on_ray.label_spec import LabelTask, Member
from rayrank.pipeline.cost import one_thread
from rayrank.sources.collate import collate
from rayrank.sources.dataset import Dataset
from rayrank.sources.encoders import LoadedEncoder, tokenise
from rayrank.sources.groups import Group, Shards, read_place

BATCH = 32
"""Rows of a naive batch."""
SPEARMAN = 0.999


class NaiveLabels:
    """Every target a row: its history padded to the longest sequence, its text padded to the maximum; eager float32.

    ``read``: texts are tokenised and encoded row by row, as a loop over rows does; otherwise items are looked up.
    """

    def __init__(self, bundle: Bundle, dataset: Dataset, read: bool) -> None:
        self.bundle, self.read = bundle, read
        self.catalogue = bundle.catalogue()
        self.texts = ["", *(text or "" for text in dataset.catalogue_table()["text"].to_pylist())] if read else []
        self.network = _plain(bundle) if read else None
        self.tokenizer = (
            (bundle.tokenizer_folder / "tokenizer.json").read_text() if read and bundle.tokenizer_folder else ""
        )

    def __call__(self, batch: SequenceBatch, place_R2: Tensor) -> dict[str, Tensor]:
        """Event task -> logits (R,) of targets at (sequence, position)."""
        with torch.inference_mode():
            parts = [self._some(batch, few) for few in place_R2.split(BATCH)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _some(self, batch: SequenceBatch, place_R2: Tensor) -> dict[str, Tensor]:
        sequence_R, place_R = place_R2.unbind(1)
        rows, model = take(batch, sequence_R), self.bundle.model
        at_R1 = place_R.unsqueeze(1)
        shown_RT = rows.events.request_BT < rows.events.request_BT.gather(1, at_R1)
        if rows.events.history_BT is not None:
            shown_RT &= rows.events.history_BT
        items_NW, item_R1 = self.bundle.items_NW, rows.events.item_BT.gather(1, at_R1)
        if self.read:
            fresh = model.item_vectors(self._items(item_R1[:, 0]), item_R1[:, 0])
            item_R1 = len(items_NW) + torch.arange(len(fresh)).unsqueeze(1)
            items_NW = torch.cat([items_NW, fresh])
        queries = Queries(
            item_R1,
            rows.events.time_BT.gather(1, at_R1),
            torch.full_like(at_R1, FAR, dtype=torch.int32),
            {name: value.gather(1, at_R1) for name, value in rows.context.items()},
        )
        state = model.user_state(replace(rows.events, history_BT=shown_RT, whole=True), items_NW)
        return {name: value[:, 0] for name, value in model.score(state, queries, items_NW).items()}

    def _items(self, item_R: Tensor) -> Catalogue:
        """The rows' items, their texts read now."""
        assert self.network is not None
        longest = self.bundle.info.encoder.max_tokens if self.bundle.info.encoder else 0
        ids, offsets = tokenise([self.texts[i] for i in item_R.tolist()], self.tokenizer, longest)
        mask = torch.arange(longest) < (offsets[1:] - offsets[:-1]).unsqueeze(1)
        padded = torch.zeros(mask.shape, dtype=torch.long)
        padded[mask] = ids.long()
        empty = ~mask.any(1)
        mask[:, 0] |= empty  # an item without text: encoded for nothing, as a loop would
        vectors = padded_vectors(self.network, padded, mask.long()) * ~empty.unsqueeze(1)
        return replace(take_rows(self.catalogue, item_R), vectors_ND=vectors)


def label_vs_naive(bundle: Bundle, dataset: Dataset, targets: int, rounds: int) -> dict[str, float]:
    """How many times faster the label job's teacher is, on one thread, after both gave the same logits."""
    task = LabelTask(dataset=dataset.path, teachers=(Member(bundle=str(bundle.path)),), output="", actors=0)
    labeller, shards = Labeller(task.model_dump(mode="json")), Shards(dataset.path)
    place = shards.place(_middle(dataset))
    batch = collate(read_place(place), dataset.schema)
    labelled_P2 = (batch.part_BT > 0).nonzero()
    few = torch.from_numpy(np.random.default_rng(0).permutation(len(labelled_P2))[:targets])
    ways = {"looked up": NaiveLabels(bundle, dataset, read=False)}
    if bundle.model.spec.inputs.text:
        ways["read"] = NaiveLabels(bundle, dataset, read=True)
    with one_thread():
        table = labeller.label(place)
        found = dict[str, float]()
        for name, way in ways.items():
            agreement = _agreement(way(batch, labelled_P2[few]), table, batch, labelled_P2[few])
            if not agreement >= SPEARMAN:  # NaN, too
                raise AssertionError(f"naive labels, items {name}: Spearman {agreement:.4f} with the label job's")
            found[f"label_vs_naive, Spearman, items {name}"] = agreement
        arms: dict[str, Callable[[], object]] = {"ours": lambda: labeller.label(place)}
        arms |= {name: partial(way, batch, labelled_P2[few]) for name, way in ways.items()}
        times = timed(arms, rounds)
    scale = len(labelled_P2) / len(few)
    found |= times.ratios("label_vs_naive", "read" if "read" in ways else "looked up", "ours", scale)
    found |= times.ratios("label_vs_naive, items looked up", "looked up", "ours", scale)
    return found | times.rates("label_vs_naive, targets/s", "ours", len(labelled_P2))


def _middle(dataset: Dataset) -> Group:
    """The row group of median size: as many events lie in smaller ones as in larger ones."""
    sizes = {Group(s, g): dataset.manifest.shards[s].row_groups[g].events for s, g in dataset.groups()}
    order = sorted(sizes, key=lambda group: sizes[group])
    return order[len(order) // 2]


def _agreement(naive: dict[str, Tensor], table: object, batch: SequenceBatch, place_R2: Tensor) -> float:
    """The least Spearman correlation of any task."""
    there_BT = batch.row_BT >= 0
    flat_BT = there_BT.flatten().long().cumsum(0).view(there_BT.shape) - 1
    at = flat_BT[place_R2[:, 0], place_R2[:, 1]].numpy()
    found = []
    for name, said in naive.items():
        column = table.column(f"soft_{name}").combine_chunks()  # type: ignore[attr-defined]
        ours = column.flatten().to_numpy(zero_copy_only=False)[at]
        found.append(spearman(ours, said.numpy()))
    return min(found)


def _plain(bundle: Bundle) -> nn.Module:
    """The library's own network with the teacher's weights."""
    encoder = bundle.model.encoder
    assert isinstance(encoder, TextEncoder)
    loaded = LoadedEncoder(encoder, "", 0, "")
    return plain_network(Texts(loaded, torch.zeros(0), torch.zeros(0)))
