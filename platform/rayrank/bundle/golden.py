"""Golden rows: synthetic requests with the scores a bundle gave when it was saved; loading must give them again.

Histories and candidates are random rows of the catalogue, drawn from a seed, because real rows would leak people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from rayrank.batch import Catalogue, Events, Queries
from rayrank.features.encode import is_multi
from rayrank.models.encoder import TextEncoder
from rayrank.models.onnx_ranker import RequestGraphs
from rayrank.models.ranker import Ranker, take_rows
from rayrank.models.spec import Sizes
from rayrank.schema import CategoricalFeature, DatasetSchema, Feature, RegressionTask, RetrievalTask

SEED, USERS, EVENTS, CANDIDATES, PACKED, TEXTS, TOKENS = 20_240_601, 4, 24, 16, 8, 3, 12
_START = 1_600_000_000

Moved = TypeVar("Moved", Events, Queries)

TOLERANCE = {
    ("float32", "cpu"): 2e-4,  # other vector widths and thread counts differ by about 1e-6
    ("float32", "mps"): 2e-3,
    ("float32", "cuda"): 5e-3,  # TF32 matrix products
    ("bfloat16", "cpu"): 2e-2,
    ("bfloat16", "cuda"): 2e-2,
    ("int8", "cpu"): 2e-2,  # a rounding that falls the other way moves what follows
}
"""Largest |difference| / (1 + |score|) by dtype and device type; entries of text vectors are below 1."""


Scoring = tuple[Ranker, RequestGraphs | None]
"""A model, and its graphs if it has any."""


def golden_rows(scoring: Scoring, window: int, catalogue: Catalogue, items_NW: Tensor) -> dict[str, Tensor]:
    """Inputs (``in.…``) and outputs (``out.…``) as flat tensors, for safetensors."""
    model = scoring[0]
    inputs = _flat(*_draw(model.schema, model.sizes, window))
    rng = np.random.default_rng(SEED)
    inputs["in.rows"] = _tensor(rng.integers(0, len(items_NW), PACKED))
    if encoder := _encoder(model):
        vocabulary = int(encoder.config()["vocab_size"])
        inputs["in.tokens"] = _tensor(rng.integers(0, vocabulary, TEXTS * TOKENS), torch.int32)
    return inputs | rescore(scoring, inputs, catalogue, items_NW)


def rescore(
    scoring: Scoring, golden: Mapping[str, Tensor], catalogue: Catalogue, items_NW: Tensor
) -> dict[str, Tensor]:
    """Outputs of stored golden inputs: logits by task, also by graphs, packed item rows and, with an encoder, texts."""
    (model, graphs), (events, queries) = scoring, _unflat(golden)
    with torch.inference_mode():
        state = model.user_state(events, items_NW)
        found = model.score(state, queries, items_NW)
        if model.schema.of_kind(RetrievalTask):
            found["retrieval"] = model.retrieval(state, queries.visible_before_BQ)
        found["items"] = model.item_vectors(take_rows(catalogue, golden["in.rows"]), golden["in.rows"])
        if (encoder := _encoder(model)) and "in.tokens" in golden:
            offsets = torch.arange(0, TEXTS * TOKENS + 1, TOKENS)
            found["text"] = encoder.encode(golden["in.tokens"], offsets, torch.arange(TEXTS))
        if graphs is not None:
            said = graphs.score(model, _row(events, 0), _row(queries, 0), items_NW)
            found |= {f"graph.{task}": logits for task, logits in said.items()}
    return {f"out.{name}": value.float().clone().contiguous() for name, value in found.items()}


def _row(given: Moved, number: int) -> Moved:
    """One sequence of events or queries, all of it visible, as in a request."""

    def one(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: one(tensor) for name, tensor in value.items()}
        return value[number : number + 1] if isinstance(value, Tensor) else value

    return replace(given, **{field.name: one(getattr(given, field.name)) for field in fields(given)})


def _encoder(model: Ranker) -> TextEncoder | None:
    encoder = getattr(model, "encoder", None)
    return encoder if isinstance(encoder, TextEncoder) else None


def limit_of(name: str, dtype: str, device: str) -> float:
    """How far an output may be off; ``dtype`` is the text encoder's, everything else is float32."""
    return TOLERANCE[(dtype if name == "out.text" else "float32", device)]


def worst(expected: Tensor, found: Tensor) -> float:
    """Largest |difference| / (1 + |expected|); infinite where something is not finite."""
    gap = (expected - found).abs() / (1 + expected.abs())
    return float("inf") if not bool(torch.isfinite(gap).all()) else float(gap.max())


def _draw(schema: DatasetSchema, sizes: Sizes, window: int) -> tuple[Events, Queries]:
    rng = np.random.default_rng(SEED)
    length = min(EVENTS, window)
    steps = rng.integers(0, 2, (USERS, length))
    time = _START + np.cumsum(rng.integers(0, 90_000, (USERS, length)), axis=1)
    labels = {}
    for task in schema.event_tasks:
        low, high = (task.low, task.high) if isinstance(task, RegressionTask) else (0, 1)
        values = rng.integers(0, 2, (USERS, length)) * (high - low) + low
        labels[task.name] = _tensor(np.where(rng.random((USERS, length)) < 0.2, np.nan, values), torch.float32)
    events = Events(
        item_BT=_tensor(rng.integers(0, sizes.items, (USERS, length))),
        request_BT=_tensor(np.cumsum(steps, axis=1), torch.int32),
        time_BT=_tensor(time),
        labels_BT=labels,
        user_B=_tensor(rng.integers(0, sizes.users, USERS)),
        user_features=_features(rng, schema.user_features, sizes.user_categories, (USERS,)),
        key_B=_tensor(np.arange(USERS)),
    )
    queries = Queries(
        item_BQ=_tensor(rng.integers(0, sizes.items, (USERS, CANDIDATES))),
        time_BQ=_tensor(np.repeat(time[:, -1:] + 3600, CANDIDATES, axis=1)),
        visible_before_BQ=_tensor(rng.integers(0, int(steps.sum(1).max()) + 2, (USERS, CANDIDATES)), torch.int32),
        context=_features(rng, schema.context_features, sizes.context_categories, (USERS, CANDIDATES)),
    )
    return events, queries


def _features(
    rng: np.random.Generator, features: tuple[Feature, ...], categories: dict[str, int], shape: tuple[int, ...]
) -> dict[str, Tensor]:
    drawn = {}
    for feature in features:
        if not isinstance(feature, CategoricalFeature):
            drawn[feature.name] = _tensor(rng.standard_normal(shape), torch.float32)
            continue
        size = (*shape, feature.max_values) if is_multi(feature) else shape
        drawn[feature.name] = _tensor(rng.integers(0, categories[feature.name], size))
    return drawn


def _flat(events: Events, queries: Queries) -> dict[str, Tensor]:
    flat = {f"in.{name}": getattr(events, name) for name in ("item_BT", "request_BT", "time_BT", "user_B", "key_B")}
    flat |= {f"in.{name}": getattr(queries, name) for name in ("item_BQ", "time_BQ", "visible_before_BQ")}
    flat |= {f"in.label.{name}": value for name, value in events.labels_BT.items()}
    flat |= {f"in.user.{name}": value for name, value in events.user_features.items()}
    return flat | {f"in.context.{name}": value for name, value in queries.context.items()}


def _unflat(golden: Mapping[str, Tensor]) -> tuple[Events, Queries]:
    def group(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}

    g = group("in.")
    events = Events(
        g["item_BT"], g["request_BT"], g["time_BT"], group("in.label."), g["user_B"], group("in.user."), g["key_B"]
    )
    return events, Queries(g["item_BQ"], g["time_BQ"], g["visible_before_BQ"], group("in.context."))


def _tensor(values: np.ndarray, kind: torch.dtype = torch.int64) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(values)).to(kind)
