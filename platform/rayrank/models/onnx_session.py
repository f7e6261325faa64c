"""Graphs on ONNX Runtime: one thread each, like every replica."""

from __future__ import annotations

from typing import Any

from rayrank.config import ConfigError


def open_session(graph: bytes, what: str) -> Any:
    """A session of one thread.

    Raises:
        ConfigError: the package onnxruntime is missing; says that ``what`` needs it.
    """
    try:
        import onnxruntime
    except ImportError:
        rule = f"this bundle's {what} runs on ONNX Runtime: the package onnxruntime must be installed"
        fix = "pip install 'rayrank[onnx]', or use the bundle it came from"
        raise ConfigError("bundle", "onnx", rule, fix) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
