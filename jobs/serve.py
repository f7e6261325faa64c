"""Start the ranking graph of the promoted release over HTTP (Ray Serve)."""

from __future__ import annotations

from rayrank.entry import start
from rayrank.pipeline.serve import ServeConfig, serve

if __name__ == "__main__":
    start(ServeConfig, serve)
