"""Modules to ONNX graphs: one exporter, one operator set, without its remarks."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rayrank.config import ConfigError

OPSET = 20
"""Version of the operators: fixed, so that a graph does not depend on what an exporter thinks newest."""

Given = Mapping[str, tuple[Tensor, dict[int, Any]]]
"""Input name -> (an example, its axes of any size)."""


def exported(module: nn.Module, given: Given, outputs: Sequence[str]) -> tuple[bytes, set[str]]:
    """The graph of a module that takes the inputs in this order, and the inputs that it really uses.

    Raises:
        ConfigError: the packages of the extra ``onnx`` are missing.
    """
    try:
        import onnxscript  # noqa: F401  # the exporter needs it and says so less plainly
    except ImportError:
        rule = "the packages onnx, onnxruntime and onnxscript must be installed"
        raise ConfigError("method.kind", "onnx", rule, "pip install 'rayrank[onnx]'") from None
    with torch.no_grad(), quiet():
        program = torch.onnx.export(
            _Positional(module, list(given)),
            tuple(example for example, _ in given.values()),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=list(given),
            output_names=list(outputs),
            dynamic_shapes=(tuple(axes for _, axes in given.values()),),
        )
    assert program is not None
    proto = program.model_proto
    used = {name for node in proto.graph.node for name in node.input}
    unused = [value for value in proto.graph.input if value.name not in used]
    for value in unused:
        proto.graph.input.remove(value)
    graph: bytes = proto.SerializeToString()
    return graph, used & set(given)


class _Positional(nn.Module):
    """A module of one dict as one of positional inputs, whose order is theirs in the graph."""

    def __init__(self, module: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *values: Tensor) -> Any:
        return self.module(dict(zip(self.names, values, strict=True)))


@contextmanager
def quiet() -> Iterator[None]:
    """Without the tools' remarks on torchvision and on their own preprocessing."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
