"""Make a release the champion if every gate passes."""

from __future__ import annotations

from rayrank.entry import start
from rayrank.pipeline.promote import PromoteConfig, promote

if __name__ == "__main__":
    start(PromoteConfig, promote)
