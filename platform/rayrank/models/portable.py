"""The few operations that graph formats lack, once as torch has them and once in plain arithmetic.

While a graph is made of a model (:mod:`rayrank.compression.ranker_graphs`) the second form is taken, everywhere else
the first. A graph answers one request: all of its candidates share user, history and time.
"""

from __future__ import annotations

import torch
from torch import Tensor

exporting = torch.compiler.is_exporting


def prefix_max(x_BT: Tensor) -> Tensor:
    """(B, T) the largest of the first 1, 2, … values."""
    if not exporting():
        return x_BT.cummax(1).values
    length = x_BT.shape[1]
    earlier_TT = torch.ones(length, length, dtype=torch.bool, device=x_BT.device).tril()
    return torch.where(earlier_TT, x_BT.unsqueeze(1), x_BT[:, :1].unsqueeze(1)).amax(2)


def shared(x_BQ: Tensor) -> bool:
    """Whether all queries of a sequence have the same value, in every sequence."""
    return exporting() or bool((x_BQ == x_BQ[:, :1]).all())


def solved(matrix_Hdd: Tensor, right_HdK: Tensor) -> tuple[Tensor, Tensor]:
    """Solutions (H, d, K) of symmetric positive definite systems, and what :func:`spread` needs of the matrices."""
    if exporting():
        return solved_by_elimination(matrix_Hdd, right_HdK)
    root_Hdd = torch.linalg.cholesky(matrix_Hdd.float())
    return torch.cholesky_solve(right_HdK.float(), root_Hdd), root_Hdd


def spread(kept_XQdd: Tensor, x_XQd: Tensor) -> Tensor:
    """(…) xᵀ A⁻¹ x, from what :func:`solved` kept of A."""
    if exporting():
        return spread_by_inverse(kept_XQdd, x_XQd)
    found: Tensor = torch.linalg.solve_triangular(kept_XQdd, x_XQd.unsqueeze(-1), upper=False).squeeze(-1)
    return found.square().sum(-1)


def solved_by_elimination(matrix_Hdd: Tensor, right_HdK: Tensor) -> tuple[Tensor, Tensor]:
    """Solutions and inverses by Gauss–Jordan in float64; positive definite matrices need no pivots."""
    size = matrix_Hdd.shape[-1]
    unit_dd = torch.eye(size, dtype=torch.float64, device=matrix_Hdd.device)
    rows = torch.cat([matrix_Hdd.double(), right_HdK.double(), unit_dd.expand_as(matrix_Hdd)], dim=-1)
    for k in range(size):
        row = rows[:, k : k + 1] / rows[:, k : k + 1, k : k + 1]
        rows = rows - (rows[:, :, k : k + 1] - unit_dd[:, k : k + 1]) * row
    solution, inverse = rows[..., size:].split([right_HdK.shape[-1], size], dim=-1)
    return solution.float(), inverse


def spread_by_inverse(inverse_XQdd: Tensor, x_XQd: Tensor) -> Tensor:
    """(…) xᵀ A⁻¹ x from A⁻¹."""
    x = x_XQd.double()
    return ((x.unsqueeze(-2) @ inverse_XQdd).squeeze(-2) * x).sum(-1).to(x_XQd.dtype)
