"""Small parts shared by the rankers: feature embeddings, multilayer perceptrons, time features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrank.features.encode import is_multi
from rayrank.models.noise import Noise
from rayrank.schema import CategoricalFeature, Feature

TABLE = TypeVar("TABLE", bound=nn.Embedding)
ID_SCALE = 0.05
"""Standard deviation of fresh id factors and category vectors: small, so that rare ids stay near the unknown one."""

TIME_WIDTH = 6
"""Columns of :func:`clock_features`."""


class FeatureSum(nn.Module):
    """The sum of one vector per feature: categories by table (mean of several values), numbers by a linear map."""

    def __init__(self, features: Sequence[Feature], categories: Mapping[str, int], width: int) -> None:
        super().__init__()
        self.width = width
        self.multiple = {f.name for f in features if is_multi(f)}
        names = [f.name for f in features if isinstance(f, CategoricalFeature)]
        self.tables = nn.ModuleDict({name: embedding(categories[name], width) for name in names})
        self.numbers = nn.ParameterDict(
            {f.name: nn.Parameter(torch.randn(width) * ID_SCALE) for f in features if f.name not in names}
        )

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """(…, D) from features (…,), or (…, M) for several values a cell."""
        parts = [self._category(name, table, features[name]) for name, table in self.tables.items()]
        parts += [features[name].unsqueeze(-1) * vector for name, vector in self.numbers.items()]
        return torch.stack(parts).sum(0)

    def weights(self) -> list[Tensor]:
        """Every parameter; the last axis is the vector's."""
        return list(self.parameters())

    @property
    def empty(self) -> bool:
        """No feature at all: do not call."""
        return not len(self.tables) and not len(self.numbers)

    def _category(self, name: str, table: nn.Module, index: Tensor) -> Tensor:
        vectors = table(index)
        if name not in self.multiple:
            return vectors
        known = (index > 0).to(vectors.dtype).unsqueeze(-1)
        return (vectors * known).sum(-2) / known.sum(-2).clamp_min(1.0)


class ItemNorm(nn.Module):
    """What an item is made of and which item it is, brought to one size each, then added.

    Normalised together, fresh id factors (0.05) drown in text (about 1): on ml-1m that cost a tenth of Recall@100.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.content, self.factor = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, content: Tensor, factor: Tensor) -> Tensor:
        """(…, D) of about unit variance, from text and attributes (…, D) and id factors (…, D)."""
        added: Tensor = (self.content(content) + self.factor(factor)) * 0.5**0.5
        return added


class Perceptron(nn.Module):
    """Linear, GELU, dropout, linear. ``zero`` starts the output at 0, for residual paths."""

    def __init__(self, widths: tuple[int, int, int], dropout: float, site: str, zero: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(widths[0], widths[1]), nn.Linear(widths[1], widths[2])
        self.rate, self.site = dropout, site
        if zero:
            nn.init.zeros_(self.second.weight)
            nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor, noise: Noise | None = None, key: Tensor | None = None) -> Tensor:
        """(…, out) from (…, in)."""
        return self.second(drop(functional.gelu(self.first(x)), self.rate, self.site, noise, key))


def drop(x: Tensor, rate: float, site: str, noise: Noise | None, key: Tensor | None) -> Tensor:
    """Keyed dropout in training; the identity when ``noise`` is None."""
    return x if noise is None or key is None else noise.drop(x, rate, site, key)


class IdTable(nn.Embedding):
    """One row per user or item. Learning may lend rows of a large table in its place, which collect the gradients."""

    source: Callable[[Tensor], Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:
        """(…, D) rows."""
        return super().forward(input) if self.source is None else self.source(input)


def embedding(rows: int, width: int) -> nn.Embedding:
    """An embedding table of small vectors."""
    return _small(nn.Embedding(rows, width))


def id_table(rows: int, width: int) -> IdTable:
    """A table of id factors, small vectors."""
    return _small(IdTable(rows, width))


def _small(table: TABLE) -> TABLE:
    nn.init.normal_(table.weight, std=ID_SCALE)
    return table


def clock_features(time: Tensor, gap_s: Tensor) -> Tensor:
    """(…, 6): hour of day and weekday as sine and cosine (UTC), log of the gap in days, whether there was one.

    ``gap_s`` is int64 seconds since the event before; negative when there is none.
    """
    day = (time % 86_400).to(torch.float32) * (2 * torch.pi / 86_400)
    week = (time // 86_400 % 7).to(torch.float32) * (2 * torch.pi / 7)
    exists = gap_s >= 0
    gap = torch.log1p(gap_s.clamp_min(0).to(torch.float32) / 60.0) / 8.0
    parts = [day.sin(), day.cos(), week.sin(), week.cos(), gap * exists, exists.to(torch.float32)]
    return torch.stack(parts, dim=-1)
