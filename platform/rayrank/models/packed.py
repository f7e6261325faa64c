"""BERT-shaped encoders on texts laid back to back: no padding, and one matrix product for all texts of a block.

Only attention needs to know where a text ends; it runs once for all texts of one length. The modules and weights are
the library's own. Knows nothing about where texts come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrank.models.linear import Linear, filled
from rayrank.models.rounded import Int8Linear

KINDS = ("bert", "roberta", "xlm-roberta", "camembert")
"""Values of a network's ``config.model_type`` that have this shape."""

Groups = Sequence[tuple[int, int]]
"""(number of texts, tokens of each) in the order of the tokens."""


def is_packable(network: nn.Module) -> bool:
    """Whether the network has the modules that the functions below call."""
    return getattr(network.config, "model_type", None) in KINDS and not getattr(network.config, "is_decoder", False)


def layers_of(network: nn.Module) -> list[nn.Module]:
    """The transformer layers, lowest first."""
    stack: Any = network.encoder
    return list(stack.layer)


def embedded(network: nn.Module, ids_T: Tensor, place_T: Tensor) -> Tensor:
    """(T, W) input of the lowest layer, from token ids and their places in their texts (both int64)."""
    parts: Any = network.embeddings
    return placed(network, parts.word_embeddings(ids_T), place_T)


def placed(network: nn.Module, words_TW: Tensor, place_T: Tensor) -> Tensor:
    """(T, W) input of the lowest layer, from what stands for the words and their places in their texts."""
    parts: Any = network.embeddings
    x = words_TW + parts.token_type_embeddings.weight[0]
    found: Tensor = parts.LayerNorm(x + parts.position_embeddings(place_T + first_place(network)))
    return found


def first_place(network: nn.Module) -> int:
    """Row of the position table that a text's first token gets."""
    parts: Any = network.embeddings
    return 0 if network.config.model_type == "bert" else int(parts.padding_idx) + 1  # type: ignore[union-attr]


def transformed(layers: Sequence[nn.Module], x_TW: Tensor, groups: Groups) -> Tensor:
    """(T, W) after the given layers. Rows of zeros, as one more text, bring them to a number that is fast."""
    tokens = len(x_TW)
    rest = filled(tokens) - tokens
    if rest:
        x_TW, groups = functional.pad(x_TW, (0, 0, 0, rest)), [*groups, (1, rest)]
    for layer in layers:
        x_TW = _layer(layer, x_TW, groups)
    return x_TW[:tokens]


def pooled(x_TW: Tensor, groups: Groups) -> Tensor:
    """(texts, W) means over the tokens of each text."""
    return torch.cat([_texts(x, group).mean(1) for x, group in _parts(x_TW, groups)])


def _layer(layer: Any, x_TW: Tensor, groups: Groups) -> Tensor:
    own, after = layer.attention.self, layer.attention.output
    asked = [module(x_TW) for module in (own.query, own.key, own.value)]
    if torch.is_autocast_enabled("cpu"):  # attention of bfloat16 takes ten times as long on a CPU, backward
        asked = [x.float() for x in asked]
    with torch.autocast("cpu", enabled=False):
        read_TW = _attended(asked, groups, own.num_attention_heads)
    x_TW = after.LayerNorm(_sum(after.dense(read_TW), x_TW))
    out: Tensor = layer.output.LayerNorm(_sum(layer.output.dense(_hidden(layer.intermediate, x_TW)), x_TW))
    return out


def _hidden(intermediate: Any, x_TW: Tensor) -> Tensor:
    dense, activation = intermediate.dense, intermediate.intermediate_act_fn
    exact_gelu = getattr(activation, "act", None) is functional.gelu  # of transformers' GELUActivation, not its likes
    fused = type(dense) in (Linear, Int8Linear) and exact_gelu and not torch.is_grad_enabled()
    hidden: Tensor = dense(x_TW, gelu=True) if fused else activation(dense(x_TW))
    return hidden


def _attended(asked: list[Tensor], groups: Groups, heads: int) -> Tensor:
    """(T, W): every token reads the tokens of its own text."""
    parts = [_parts(x, groups) for x in asked]
    found = []
    for (q, group), (k, _), (v, _) in zip(*parts, strict=True):
        q, k, v = (_texts(x, group).unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        read = functional.scaled_dot_product_attention(q, k, v)
        found.append(read.transpose(1, 2).reshape(group[0] * group[1], -1))
    return found[0] if len(found) == 1 else torch.cat(found)


def _parts(x_TW: Tensor, groups: Groups) -> list[tuple[Tensor, tuple[int, int]]]:
    return list(zip(x_TW.split([count * length for count, length in groups]), groups, strict=True))


def _texts(x: Tensor, group: tuple[int, int]) -> Tensor:
    return x.view(*group, -1)


def _sum(x: Tensor, residual: Tensor) -> Tensor:
    return x + residual if torch.is_grad_enabled() else x.add_(residual)
