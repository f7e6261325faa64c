"""Let the teacher label every target once (Ray Data)."""

from __future__ import annotations

from rayrank.entry import start
from rayrank.pipeline.label import LabelConfig, label

if __name__ == "__main__":
    start(LabelConfig, label)
