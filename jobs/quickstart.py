"""Run the whole path on a small dataset and write a report."""

from __future__ import annotations

from rayrank.entry import start
from rayrank.pipeline.quickstart import QuickstartConfig, quickstart

if __name__ == "__main__":
    start(QuickstartConfig, quickstart)
