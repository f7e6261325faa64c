"""Fine-tune the text encoder as a multi-task ranker (Ray Train, DDP)."""

from __future__ import annotations

from rayrank.entry import start
from rayrank.pipeline.train_teacher import TrainTeacherConfig, train_teacher

if __name__ == "__main__":
    start(TrainTeacherConfig, train_teacher)
