"""Train the student on labels and cached teacher scores."""

from __future__ import annotations

from rayrank.entry import start
from rayrank.pipeline.distill import DistillConfig, distill

if __name__ == "__main__":
    start(DistillConfig, distill)
