"""Linear layers by oneDNN where that is the faster library.

``torch.nn.functional.linear`` calls MKL for float32 on a CPU, which leaves half of a newer AMD processor (family 26)
unused: at 512 × 384 × 1536 oneDNN does twice the multiplications a second, forward and backward. It compiles a kernel
for every shape it meets, which takes as long as the product itself and is kept for good, so it is asked for a few
numbers of rows only (:data:`ROWS`): who wants it fills up to one of them. The numbers agree to rounding.

Under autocast both passes multiply in bfloat16 by oneDNN as well: torch's own backward products take three times as
long as its forward one.
"""

from __future__ import annotations

from functools import lru_cache
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


@lru_cache
def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 faster than float32: most GPUs, CPUs with AVX-512 BF16 or AMX."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    known = device.type == "cpu" and torch.backends.mkldnn.is_available()
    return known and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


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

    ``gelu`` is for inference: no gradient flows through it. Under autocast the result is bfloat16.
    """
    low = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    if not _pays(x, weight, low):
        out = functional.linear(x, weight, bias)
        return functional.gelu(out) if gelu else out
    if torch.is_grad_enabled() and not gelu:
        return _Product.apply(x, weight, bias, low)  # type: ignore[no-any-return, no-untyped-call]
    if low:
        x, weight, bias = _low(x, weight, bias)
    return _product(x, weight, bias, "gelu" if gelu else "none")


def _pays(x: Tensor, weight: Tensor, low: bool) -> bool:
    known = x.device.type == "cpu" and x.dim() == 2 and x.shape[0] in ROWS and torch.backends.mkldnn.is_available()
    if not known or x.dtype not in (torch.float32, torch.bfloat16):
        return False
    if low or x.dtype == torch.bfloat16:  # oneDNN refuses it on processors without; torch has a slow way
        fits = weight.dtype == (torch.float32 if low else torch.bfloat16)
        return fits and multiplies_bf16(x.device)
    return weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def _low(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    return x.bfloat16(), weight.bfloat16(), None if bias is None else bias.bfloat16()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, then: str = "none") -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "none")  # type: ignore[no-any-return]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, low: bool) -> Tensor:
        ctx.biased, ctx.low, ctx.dtype = bias is not None, low, x.dtype
        low_x, low_weight, low_bias = _low(x, weight, bias) if low else (x, weight, bias)
        ctx.save_for_backward(low_x, weight)  # the weight itself: a copy for every block of texts would add up
        return _product(low_x, low_weight, low_bias)

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        weight = weight.bfloat16() if ctx.low else weight
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        return (
            _product(grad, weight.t(), None).to(ctx.dtype) if wants_x else None,
            _product(grad.t(), x.t(), None).float() if wants_weight else None,
            grad.sum(0, dtype=torch.float32) if wants_bias and ctx.biased else None,
            None,
        )
