"""Text encoders with weights of fewer bits, for inference on a CPU: bfloat16, or int8 with int8 inputs.

int8 weights have one scale per output (Jacob et al., CVPR 2018). Inputs are rounded too: *dynamic* by a scale per
token, so that a text's vector does not depend on the texts encoded beside it, or *static* by one range per layer that
was measured once on texts. Products are oneDNN's, with int32 sums; without oneDNN the rounded numbers are multiplied
as float32. Which texts the ranges come from is :mod:`rayrank.compression.apply`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Rounding = Literal["bfloat16", "int8_dynamic", "int8_static"]
Ranges = dict[str, tuple[float, float]]
"""Name of a linear layer -> least and largest entry of its input."""

_LEVELS, _HALF, _MIDDLE = 255, 127, 128


class Int8Linear(nn.Module):
    """A linear layer with int8 weights and inputs; ``range_2`` is the input's range, empty when taken by token."""

    def __init__(self, inputs: int, outputs: int, static: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.static = inputs, outputs, static
        self.weight_NK = _parameter(torch.zeros(outputs, inputs, dtype=torch.int8))
        self.scale_N = _parameter(torch.ones(outputs))
        self.bias = _parameter(torch.zeros(outputs))
        self.range_2 = _parameter(torch.zeros(2 if static else 0))
        self._packed: Tensor | None = None

    @staticmethod
    def of(dense: nn.Linear, range_: tuple[float, float] | None) -> Int8Linear:
        """``dense`` rounded; ``range_`` is that of its inputs, None for a scale per token."""
        rounded = Int8Linear(dense.in_features, dense.out_features, range_ is not None)
        weight = dense.weight.detach()
        scale_N = (weight.abs().amax(1) / _HALF).clamp_min(torch.finfo(torch.float32).tiny)
        rounded.weight_NK = _parameter((weight / scale_N.unsqueeze(1)).round().to(torch.int8))
        rounded.scale_N = _parameter(scale_N)
        if dense.bias is not None:
            rounded.bias = _parameter(dense.bias.detach().clone())
        if range_ is not None:
            rounded.range_2 = _parameter(torch.tensor([min(range_[0], 0.0), max(range_[1], 0.0)]))
        return rounded

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        """(…, N) for x (…, K); with ``gelu`` its exact GELU."""
        flat = x if x.dim() == 2 else x.flatten(0, -2)
        out = self._by_range(flat, gelu) if self.static else self._by_token(flat, gelu)
        return out if x.dim() == 2 else out.unflatten(0, x.shape[:-1])

    def _by_token(self, x_MK: Tensor, gelu: bool) -> Tensor:
        scale_M1 = x_MK.abs().amax(1, keepdim=True) / _HALF  # a norm of order infinity takes 20 times as long
        # Unsigned, around 128: oneDNN has no fast product of two signed sides (18 s instead of 1 ms).
        rounded = (x_MK / scale_M1.clamp_min(1e-12)).add_(_MIDDLE + 0.5).to(torch.uint8)
        out = torch.addcmul(self.bias, self._product(rounded, (1.0, _MIDDLE), None, "none"), scale_M1)
        return functional.gelu(out) if gelu else out

    def _by_range(self, x_MK: Tensor, gelu: bool) -> Tensor:
        step, zero = self._scale()
        rounded = torch.add(torch.tensor(zero + 0.5), x_MK, alpha=1 / step).clamp_(0, _LEVELS).to(torch.uint8)
        return self._product(rounded, (step, zero), self.bias, "gelu" if gelu else "none")

    def _product(self, x_MK: Tensor, scaling: tuple[float, int], bias: Tensor | None, then: str) -> Tensor:
        if not torch.backends.mkldnn.is_available():
            step, zero = scaling
            plain = functional.linear((x_MK.float() - zero) * step, self.weight_NK * self.scale_N.unsqueeze(1), bias)
            return functional.gelu(plain) if then == "gelu" else plain
        self._ready()
        zeros = torch.zeros(self.out_features, dtype=torch.int32)
        found: Tensor = torch.ops.onednn.qlinear_pointwise(
            x_MK, *scaling, self._packed, self.scale_N, zeros, bias, 1.0, 0, torch.float32, then, [], "none"
        )
        return found

    def _ready(self) -> None:
        """Weights in oneDNN's own order, made at the first product: loading replaces them."""
        if self._packed is None:
            self._packed = torch.ops.onednn.qlinear_prepack(self.weight_NK, None)

    def _scale(self) -> tuple[float, int]:
        """(step, zero point) of a static input."""
        low, high = self.range_2.tolist()
        step = max(high - low, 1e-12) / _LEVELS
        return step, round(-low / step)


def round_weights(network: nn.Module, rounding: Rounding, ranges: Ranges | None = None) -> None:
    """Round a network's weights in place, and write into its config how; without ``ranges`` to be loaded later."""
    network.config.rounding = rounding  # type: ignore[union-attr]
    if rounding == "bfloat16":
        network.to(torch.bfloat16)
        return
    for name, dense in _linears(network):
        known = None if rounding == "int8_dynamic" else (0.0, 0.0) if ranges is None else ranges[name]
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, Int8Linear.of(dense, known))


@contextmanager
def input_ranges(network: nn.Module) -> Iterator[Ranges]:
    """What goes into every linear layer inside the block: fills the ranges that static rounding needs."""
    found: Ranges = {}

    def see(name: str, _: nn.Module, given: tuple[Any, ...]) -> None:
        low, high = (float(v) for v in torch.aminmax(given[0]))
        before = found.get(name, (0.0, 0.0))
        found[name] = (min(low, before[0]), max(high, before[1]))

    hooks = [dense.register_forward_pre_hook(partial(see, name)) for name, dense in _linears(network)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _linears(network: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]


def _parameter(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)
