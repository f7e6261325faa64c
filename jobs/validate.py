"""Check a dataset YAML against the files it describes."""

from __future__ import annotations

from rayrank.entry import start
from rayrank.pipeline.validate import ValidateConfig, validate

if __name__ == "__main__":
    start(ValidateConfig, validate)
