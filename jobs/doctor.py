"""Find what would break before it breaks."""

from __future__ import annotations

from rayrank.entry import start
from rayrank.pipeline.doctor import DoctorConfig, doctor

if __name__ == "__main__":
    start(DoctorConfig, doctor)
