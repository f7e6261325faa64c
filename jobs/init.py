"""Read your files and write a commented dataset YAML and a config of every job."""

from __future__ import annotations

from rayrank.entry import start
from rayrank.pipeline.init import InitConfig, init

if __name__ == "__main__":
    start(InitConfig, init)
