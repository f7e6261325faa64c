"""Compare a model with baselines and the champion; ends in a verdict."""

from __future__ import annotations

from rayrank.entry import start
from rayrank.pipeline.evaluate import EvaluateConfig, evaluate

if __name__ == "__main__":
    start(EvaluateConfig, evaluate)
