"""A text encoder as an ONNX graph, in float32 or with int8 products.

int8 goes through ONNX Runtime's own tools: *dynamic* takes the range of each layer's input when it comes, *static*
measures it beforehand on item texts.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rayrank.compression.exporter import exported, quiet
from rayrank.compression.texts import Texts
from rayrank.config import ConfigError
from rayrank.models.encoder import TextEncoder, Tokens, padded
from rayrank.models.onnx_encoder import IDS, MASK, VECTORS
from rayrank.models.packed import is_packable, layers_of

OnnxInt8 = Literal["none", "dynamic", "static"]
_CALIBRATED = 8
_HIDDEN = -1e9


def encoder_graph(encoder: TextEncoder, int8: OnnxInt8, texts: Texts, judged_texts: int) -> bytes:
    """The graph from padded token ids and their mask to mean token vectors.

    Raises:
        ConfigError: a network of another shape than BERT's, or the packages of the extra ``onnx`` are missing.
    """
    if not is_packable(encoder.network):
        kind = getattr(encoder.network.config, "model_type", None)
        raise ConfigError("method.kind", kind, "graphs are made of BERT-shaped encoders only", "choose another method")
    graph = _exported(PaddedEncoder(encoder.network).eval())
    if int8 == "none":
        return graph
    rows = texts.learnt[:judged_texts]
    with tempfile.TemporaryDirectory(prefix="rayrank-onnx-") as folder, quiet():
        before, after = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        before.write_bytes(graph)
        _round(before, after, _Batches(texts, rows, encoder.pad_token) if int8 == "static" else None)
        return after.read_bytes()


class PaddedEncoder(nn.Module):
    """A BERT-shaped network on padded texts, in operations that an exporter can follow for any size."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, given: dict[str, Tensor]) -> Tensor:
        """(B, W) means over the tokens whose mask is 1."""
        ids_BT, mask_BT = given[IDS], given[MASK]
        parts: Any = self.network.embeddings
        first = 0 if self.network.config.model_type == "bert" else int(parts.padding_idx) + 1  # type: ignore[union-attr]
        place_T = torch.arange(ids_BT.shape[1], device=ids_BT.device) + first
        x = parts.word_embeddings(ids_BT) + parts.token_type_embeddings.weight[0] + parts.position_embeddings(place_T)
        x = parts.LayerNorm(x)
        unseen = (1.0 - mask_BT.to(x.dtype))[:, None, None, :] * _HIDDEN
        for layer in layers_of(self.network):
            x = _layer(layer, x, unseen)
        weight = mask_BT.to(x.dtype).unsqueeze(-1)
        pooled: Tensor = (x * weight).sum(1) / weight.sum(1)
        return pooled


def _layer(layer: Any, x: Tensor, unseen: Tensor) -> Tensor:
    own, after = layer.attention.self, layer.attention.output
    heads = own.num_attention_heads
    q, k, v = (module(x).unflatten(-1, (heads, -1)).transpose(1, 2) for module in (own.query, own.key, own.value))
    seen = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + unseen, -1)
    x = after.LayerNorm(after.dense((seen @ v).transpose(1, 2).flatten(2)) + x)
    hidden = layer.intermediate.intermediate_act_fn(layer.intermediate.dense(x))
    out: Tensor = layer.output.LayerNorm(layer.output.dense(hidden) + x)
    return out


def _exported(module: nn.Module) -> bytes:
    sizes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")}
    example = torch.ones(2, 7, dtype=torch.int64)
    return exported(module, {IDS: (example, sizes), MASK: (example.clone(), sizes)}, [VECTORS])[0]


def _round(before: Path, after: Path, batches: Any) -> None:
    from onnxruntime import quantization as tools

    options = {
        "weight_type": tools.QuantType.QInt8,
        "per_channel": True,
        "op_types_to_quantize": ["MatMul", "Gemm"],
        "extra_options": {"MatMulConstBOnly": True},  # products of two inputs, in the attention, stay as they are
    }
    if batches is None:
        tools.quantize_dynamic(before, after, **options)
    else:
        tools.quantize_static(before, after, batches, activation_type=tools.QuantType.QUInt8, **options)


class _Batches:
    """Padded texts, some at a time, as ONNX Runtime's calibration asks for them."""

    def __init__(self, texts: Texts, rows: Tensor, pad_token: int) -> None:
        self._few = iter(rows.split(_CALIBRATED))
        self._texts, self._pad_token = texts, pad_token

    def get_next(self) -> dict[str, Any] | None:  # the name that the tool calls
        rows = next(self._few, None)
        if rows is None:
            return None
        offsets = self._texts.offsets
        lengths = (offsets[1:] - offsets[:-1])[rows]
        order = torch.argsort(lengths)
        text = Tokens.of(offsets[rows[order]], lengths[order])
        ids_BT, mask_BT = padded(self._texts.token_ids, text, self._pad_token)
        return {IDS: ids_BT.numpy(), MASK: mask_BT.numpy()}
