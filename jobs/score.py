"""Score shards in batch with the code that serves (Ray Data)."""

from __future__ import annotations

from rayrank.entry import start
from rayrank.pipeline.score import ScoreConfig, score

if __name__ == "__main__":
    start(ScoreConfig, score)
