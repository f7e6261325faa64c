"""Measure what a release's cuts lose of the teacher's best, and find the cheapest pair within a latency budget."""

from __future__ import annotations

from rayrank.entry import start
from rayrank.pipeline.funnel import FunnelConfig, funnel

if __name__ == "__main__":
    start(FunnelConfig, funnel)
