"""Write a dataset: user-sequence shards, item and user tables (Ray Data)."""

from __future__ import annotations

from rayrank.entry import start
from rayrank.pipeline.prepare import PrepareConfig, prepare

if __name__ == "__main__":
    start(PrepareConfig, prepare)
