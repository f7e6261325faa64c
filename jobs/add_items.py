"""Put items into the catalogue that is served, or take them out, without training."""

from __future__ import annotations

from rayrank.entry import start
from rayrank.pipeline.add_items import AddItemsConfig, add_items

if __name__ == "__main__":
    start(AddItemsConfig, add_items)
