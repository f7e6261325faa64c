"""Turn the served log and feedback into tables that prepare reads."""

from __future__ import annotations

from rayrank.entry import start
from rayrank.pipeline.export_served import ExportServedConfig, export_served

if __name__ == "__main__":
    start(ExportServedConfig, export_served)
