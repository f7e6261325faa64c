"""A text encoder computed by ONNX Runtime instead of torch; the same texts in, the same vectors out.

Knows the bytes of a graph from padded token ids to text vectors; who makes it is :mod:`rayrank.compression.onnx_graph`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rayrank.models.encoder import TextEncoder, Tokens, padded
from rayrank.models.onnx_session import open_session

IDS, MASK, VECTORS = "ids_BT", "mask_BT", "vectors_BW"
"""Names of the graph's inputs (int64) and output (float32, means over the tokens)."""


class OnnxEncoder(TextEncoder):
    """Has no weights of its own: they are in the graph. One thread, like every replica."""

    def __init__(self, graph: bytes, config: Mapping[str, Any]) -> None:
        nn.Module.__init__(self)
        self.width, self.pad_token = int(config["hidden_size"]), int(config.get("pad_token_id") or 0)
        self.packed, self.additions, self.frozen_layers = False, None, 0
        self.alive, self.bf16 = (lambda: None), False
        self._config, self._session = dict(config), open_session(graph, "text encoder")

    def config(self) -> dict[str, Any]:
        """The configuration of the network that the graph was made from."""
        return self._config

    def _pooled(self, token_ids: Tensor, text: Tokens, x_TW: Tensor | None, half_way: bool) -> Tensor:  # noqa: ARG002
        ids_BT, mask_BT = padded(token_ids, text, self.pad_token)
        (found,) = self._session.run([VECTORS], {IDS: ids_BT.numpy(), MASK: mask_BT.numpy()})
        return torch.from_numpy(found)
