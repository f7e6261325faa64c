"""Narrower students: units of hidden layers and of item vectors taken out, what is left really smaller.

Knows which rows and columns of every tensor belong to which unit; which units go is :mod:`rayrank.compression.narrow`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rayrank.models.student import Student

Units = Mapping[str, Tensor]
"""Kept units, int64 and rising: "width", "taste", "hidden", "second", and those of a small head by the head's name."""


def heads_of(model: Student) -> dict[str, Any]:
    """The heads that have a hidden layer of their own, by name."""
    return {"retrieval": model.retrieval_user, **{f"profile.{n}": head for n, head in model.profile_heads.items()}}


def sizes_of(model: Student) -> dict[str, int]:
    """How many units there are."""
    spec = model.spec
    found = {"width": spec.width, "taste": spec.taste_width, "hidden": spec.hidden, "second": spec.hidden // 2}
    return found | dict.fromkeys(heads_of(model), spec.hidden)


def narrowed(model: Student, kept: Units) -> Student:
    """A copy with the kept units alone. The static path is that of ``model``."""
    sizes = {"width": len(kept["width"]), "taste_width": len(kept["taste"]), "hidden": len(kept["hidden"])}
    with torch.random.fork_rng(devices=[]):
        smaller = type(model)(model.spec.model_copy(update=sizes), model.schema, model.sizes)
    cuts = dict(_cuts(model, kept))
    state = {}
    for name, value in model.state_dict().items():
        for axis, places in cuts.get(name, ()):
            value = value.index_select(axis, places)
        state[name] = value.clone()
    smaller.with_encoder(model.encoder).load_state_dict(state, strict=True)
    return smaller.train(model.training)


Cut = tuple[str, tuple[tuple[int, Tensor], ...]]
"""Name of a tensor, and for each axis that is cut the places that stay."""


def _cuts(model: Student, kept: Units) -> Iterator[Cut]:
    width, hidden, second = kept["width"], kept["hidden"], kept["second"]
    summary = _summary(model, width)
    yield from _items(model, width, hidden)
    yield from _reader(model, kept["taste"])
    yield from _all(model.context, "context", hidden)
    old = model.reader.taste_width, model.summary.width
    clock = torch.arange(sum(old), model.user_hidden.in_features)
    seen = torch.cat([_tastes(model, kept["taste"]), summary + old[0], clock])
    yield "user_hidden.weight", ((0, hidden), (1, seen))
    yield "user_hidden.bias", ((0, hidden),)
    yield "second.weight", ((0, second), (1, hidden))
    yield "second.bias", ((0, second),)
    yield "output.weight", ((1, second),)
    for name in heads_of(model):
        place = "retrieval_user" if name == "retrieval" else f"profile_heads.{name.removeprefix('profile.')}"
        yield f"{place}.first.weight", ((0, kept[name]), (1, summary))
        yield f"{place}.first.bias", ((0, kept[name]),)
        yield f"{place}.second.weight", ((1, kept[name]),)


def _items(model: Student, width: Tensor, hidden: Tensor) -> Iterator[Cut]:
    yield from _all(model.items.features, "items.features", width)
    for name in ("text.weight", "text.bias", "base", "from_factor.weight"):
        yield f"items.{name}", ((0, width),)
    for part in ("content", "factor"):
        yield f"items.norm.{part}.weight", ((0, width),)
        yield f"items.norm.{part}.bias", ((0, width),)
    yield "items.hidden.weight", ((0, hidden), (1, width))
    yield "items.hidden.bias", ((0, hidden),)
    yield "items.retrieval.weight", ((1, width),)


def _reader(model: Student, taste: Tensor) -> Iterator[Cut]:
    reader = model.reader
    columns = torch.cat([taste, torch.arange(reader.width, reader.row_width)])
    yield "reader.factor.weight", ((1, columns),)
    yield from _all(reader.features, "reader.features", columns)
    yield "reader.text.weight", ((0, columns),)
    yield "reader.base", ((0, columns),)
    yield from _all(reader.user_features, "reader.user_features", _tastes(model, taste))
    yield "reader.log_ridge", ((0, _with_constant(taste)),)


def _all(module: nn.Module, name: str, places: Tensor) -> Iterator[Cut]:
    """Every parameter of a feature sum, along its last axis."""
    for inside, value in module.named_parameters():
        yield f"{name}.{inside}", ((value.dim() - 1, places),)


def _with_constant(taste: Tensor) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.int64), taste + 1])


def _tastes(model: Student, taste: Tensor) -> Tensor:
    """Places in the flat taste, ((d + 1) K): constant term first, tasks innermost."""
    tasks = len(model.schema.event_tasks)
    return (_with_constant(taste).unsqueeze(1) * tasks + torch.arange(tasks)).flatten()


def _summary(model: Student, width: Tensor) -> Tensor:
    """Places in the means of :class:`Summary`: blocks of item vectors, then single numbers."""
    blocks, size = model.summary.channels + 1, model.spec.width
    vectors = (torch.arange(blocks).unsqueeze(1) * size + width).flatten()
    return torch.cat([vectors, torch.arange(blocks * size, model.summary.width)])


def gate(module: nn.Module, gates: Tensor, given: bool) -> Callable[[], None]:
    """Multiply what a module is given (or puts out) by ``gates`` from now on; the answer takes that back."""
    if given:
        return module.register_forward_pre_hook(lambda _, inputs: (inputs[0] * gates, *inputs[1:])).remove
    return module.register_forward_hook(lambda _, __, output: output * gates).remove
