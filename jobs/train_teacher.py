"""Train a multi-task ranker on a pretrained text encoder, frozen or fine-tuned (Ray Train)."""

from __future__ import annotations

from rayrank.entry import start
from rayrank.pipeline.train_teacher import TrainTeacherConfig, train_teacher

if __name__ == "__main__":
    start(TrainTeacherConfig, train_teacher)
