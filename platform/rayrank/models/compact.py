"""Smaller text encoders: whole layers, attention heads and feed-forward neurons taken out, what is left really smaller.

Every layer keeps the same number of heads and of neurons, so that the network's own config (``num_hidden_layers``,
``intermediate_size`` and, added to it, ``kept_heads``) rebuilds it. Knows BERT-shaped networks; which units go is
:mod:`rayrank.compression.prune`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rayrank.models.packed import layers_of


def keep_layers(network: nn.Module, kept: Sequence[int]) -> None:
    """Leave only the layers at these places, in their order."""
    stack: Any = network.encoder
    stack.layer = nn.ModuleList([stack.layer[place] for place in kept])
    network.config.num_hidden_layers = len(kept)  # type: ignore[union-attr]


def keep_heads(network: nn.Module, kept: Sequence[Tensor]) -> None:
    """Leave only these attention heads (int64, one tensor per layer, all of one length)."""
    for layer, heads in zip(layers_of(network), kept, strict=True):
        own, after = _attention(layer)
        width = own.query.out_features // own.num_attention_heads
        rows = (heads.unsqueeze(1) * width + torch.arange(width)).flatten()
        for module in (own.query, own.key, own.value):
            _take_outputs(module, rows)
        _take_inputs(after.dense, rows)
        own.num_attention_heads, own.all_head_size = len(heads), len(rows)
        network.config.kept_heads = len(heads)  # type: ignore[union-attr]


def keep_neurons(network: nn.Module, kept: Sequence[Tensor]) -> None:
    """Leave only these neurons of the feed-forward parts (int64, one tensor per layer, all of one length)."""
    for layer, neurons in zip(layers_of(network), kept, strict=True):
        part: Any = layer
        _take_outputs(part.intermediate.dense, neurons)
        _take_inputs(part.output.dense, neurons)
        network.config.intermediate_size = len(neurons)  # type: ignore[union-attr]


def heads_of(network: nn.Module) -> int:
    """Attention heads of a layer."""
    return int(_attention(layers_of(network)[0])[0].num_attention_heads)


def neurons_of(network: nn.Module) -> int:
    """Feed-forward neurons of a layer."""
    part: Any = layers_of(network)[0]
    return int(part.intermediate.dense.out_features)


def _attention(layer: nn.Module) -> tuple[Any, Any]:
    part: Any = layer
    return part.attention.self, part.attention.output


def _take_outputs(dense: nn.Linear, rows: Tensor) -> None:
    dense.weight = nn.Parameter(dense.weight.detach()[rows].clone(), dense.weight.requires_grad)
    dense.bias = nn.Parameter(dense.bias.detach()[rows].clone(), dense.bias.requires_grad)
    dense.out_features = len(rows)


def _take_inputs(dense: nn.Linear, columns: Tensor) -> None:
    dense.weight = nn.Parameter(dense.weight.detach()[:, columns].clone(), dense.weight.requires_grad)
    dense.in_features = len(columns)
