"""Set two or more bundles side by side on the same rows: metrics, p-values, slices, speed, size."""

from __future__ import annotations

from rayrank.entry import start
from rayrank.pipeline.compare import CompareConfig, compare

if __name__ == "__main__":
    start(CompareConfig, compare)
