"""Linear layers by oneDNN where that is the faster library.

``torch.nn.functional.linear`` calls MKL for float32 on a CPU, which leaves half of an AMD processor unused: at 512 ×
384 × 1536 oneDNN does twice the multiplications a second, forward and backward. It compiles a kernel for every shape
it meets, which takes as long as the product itself and is kept for good, so it is asked for a few numbers of rows only
(:data:`ROWS`): who wants it fills up to one of them. The numbers agree to rounding.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

M = TypeVar("M", bound=nn.Module)

ROWS = (32, 64, 128, 256, 384, 512, 768, 1024)
"""Numbers of rows that oneDNN is asked for; a shape costs about a megabyte and a millisecond, once."""


def filled(rows: int) -> int:
    """The smallest of :data:`ROWS` that holds so many rows; the same number where none does."""
    return next((size for size in ROWS if size >= rows), rows)


class Linear(nn.Linear):
    """``nn.Linear``, computed by :func:`linear`. The same parameters by the same names."""

    def forward(self, input: Tensor, gelu: bool = False) -> Tensor:  # the base class's name
        return linear(input, self.weight, self.bias, gelu)


def quicken(network: M) -> M:
    """Let every plain linear layer of a network made elsewhere compute as :class:`Linear`; its weights stay."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
    return network


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """``x @ weightᵀ + bias`` (…, N) for x (…, K) and weight (N, K); with ``gelu`` its exact GELU in the same pass.

    ``gelu`` is for inference: no gradient flows through it.
    """
    if not _pays(x, weight):
        out = functional.linear(x, weight, bias)
        return functional.gelu(out) if gelu else out
    if gelu:
        return _product(x, weight, bias, "gelu")
    if torch.is_grad_enabled():
        return _Product.apply(x, weight, bias)  # type: ignore[no-any-return, no-untyped-call]
    return _product(x, weight, bias)


def _pays(x: Tensor, weight: Tensor) -> bool:
    plain = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    known = x.dim() == 2 and x.shape[0] in ROWS
    return plain and known and torch.backends.mkldnn.is_available() and not torch.is_autocast_enabled("cpu")


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, then: str = "none") -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "none")  # type: ignore[no-any-return]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.t(), None) if wants_x else None,
            _product(grad.t(), x.t(), None) if wants_weight else None,
            grad.sum(0) if wants_bias and ctx.biased else None,
        )
