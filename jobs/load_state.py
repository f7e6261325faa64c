"""Put the histories that exist already into the store of user state."""

from __future__ import annotations

from rayrank.entry import start
from rayrank.pipeline.load_state import LoadStateConfig, load_state

if __name__ == "__main__":
    start(LoadStateConfig, load_state)
