"""Make a bundle smaller and faster, or refuse it if its scores move too far."""

from __future__ import annotations

from rayrank.entry import start
from rayrank.pipeline.compress import CompressConfig, compress

if __name__ == "__main__":
    start(CompressConfig, compress)
