"""Search task weights and distillation temperature (Ray Tune)."""

from __future__ import annotations

from rayrank.entry import start
from rayrank.pipeline.tune import TuneConfig, tune

if __name__ == "__main__":
    start(TuneConfig, tune)
