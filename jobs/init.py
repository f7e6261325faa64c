"""Read your files and write a commented dataset YAML."""

from __future__ import annotations

from rayrank.entry import start
from rayrank.pipeline.init import InitConfig, init

if __name__ == "__main__":
    start(InitConfig, init)
