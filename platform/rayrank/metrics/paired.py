"""Whether a paired difference could be chance, and what looking at many differences does to that.

The samples of a difference come from one bootstrap of all models, so they are paired. Knows numbers only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rayrank.metrics.scores import Array


def two_sided_p(samples: Array) -> float:
    """p-value of "no difference" from bootstrap samples (R,) of the difference.

    Twice the smaller share of samples on either side of 0, counting 0 on both sides and one sample more than there are
    (Davison & Hinkley, Bootstrap Methods and their Application, 1997, §4.2): p < 0.05 where the 95 % percentile
    interval leaves out 0, and never below 2 / (R + 1). NaN samples are left out; NaN without any.
    """
    samples = samples[np.isfinite(samples)]
    if not len(samples):
        return float("nan")
    side = min(int((samples <= 0).sum()), int((samples >= 0).sum()))
    return min(1.0, 2.0 * (side + 1) / (len(samples) + 1))


def holm(p: Sequence[float]) -> Array:
    """Corrected p-values, float64 (tests,): the chance of one false finding among all tests stays below the level.

    Step-down: the i-th smallest of m is multiplied by m − i + 1 and never falls below the one before (Holm,
    Scandinavian Journal of Statistics 1979). Holds for any dependence between the tests. NaN is no test and stays NaN.
    """
    found = np.full(len(p), np.nan)
    known = np.flatnonzero(np.isfinite(np.asarray(p, np.float64)))
    order = known[np.argsort(np.asarray(p, np.float64)[known], kind="stable")]
    factor = np.arange(len(order), 0, -1)
    found[order] = np.minimum(np.maximum.accumulate(factor * np.asarray(p, np.float64)[order]), 1.0)
    return found


def resamples_for(tests: int, level: float = 0.05) -> int:
    """Resamples after which a corrected p-value of ``tests`` tests can be half of ``level``; whole thousands."""
    return 1000 * max(1, -(-round(4 * tests / level) // 1000))
