"""Ask a running service at given rates; say how many replicas a rate needs."""

from __future__ import annotations

from rayrank.entry import start
from rayrank.pipeline.loadtest import LoadtestConfig, loadtest

if __name__ == "__main__":
    start(LoadtestConfig, loadtest)
