"""How a ranker is trained: batches, optimiser, schedule, what decides when to stop."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rayrank.config import Config


class RowsSpec(Config):
    """The first stage: the static path, trained on events in random order instead of user by user.

    A user's factor gets one update an epoch from batches of whole sequences, but a hundred from shuffled rows.
    """

    epochs: int = Field(3, ge=0, description="passes over the training targets; 0: the static path is not used")
    batch: int = Field(2048, ge=1, description="events of a step, at most")
    steps: int = Field(150, ge=1, description="steps of a pass, at least: small data is cut into smaller batches")
    learning_rate: float = Field(1e-2, gt=0, description="peak of the schedule")
    weight_decay: float = Field(1.0, ge=0, description="AdamW, on all factors: what keeps them from memorising")
    ema: float = Field(0.995, ge=0, lt=1, description="decay of the averaged weights that are kept; 0: none")
    window: int = Field(160, ge=1, description="micro-batches of a lane whose events are shuffled together in memory")


class RefreshSpec(Config):
    """Which items of a step get a fresh text vector, with gradient; the others have theirs from the cache."""

    share: float = Field(0.05, gt=0, le=1, description="share of a step's items that is encoded anew, on average")
    by: Literal["need", "uniform"] = Field(
        "need", description="need: the longer ago an item was encoded, the likelier; uniform: all alike"
    )
    max_age: int = Field(200, ge=1, description="steps after which a vector that is used is encoded anew in any case")


class FoldSpec(Config):
    """A part of the users, by a hash."""

    number: int = Field(ge=0, description="which one, from 0")
    count: int = Field(ge=2, description="into how many the users are divided")
    seed: int = Field(0, ge=0, description="of the division")

    @model_validator(mode="after")
    def _among_them(self) -> FoldSpec:
        if self.number >= self.count:
            raise ValueError(f"number {self.number} must be below count {self.count}")
        return self


class LearningSpec(Config):
    """Everything about the loop that changes the result. Equal specs, seeds and data give equal numbers."""

    seed: int = Field(0, ge=0, description="initial weights, order of the data, dropout, sampled items")
    rows: RowsSpec = Field(default_factory=RowsSpec, description="the first stage, on shuffled rows")
    epochs: int = Field(3, ge=1, description="passes over the training targets in the second stage, on sequences")
    choose_blend: bool = Field(True, description="choose the share of the static path on valid, by each task's loss")
    lanes: int = Field(
        2,
        ge=1,
        description="micro-batches of a step; not the number of workers: a worker with several adds up their gradients",
    )
    batch_events: int = Field(
        2048, ge=1, description="padded positions of a micro-batch, at most (one sequence at least)"
    )
    targets_per_sequence: int | None = Field(
        None, ge=1, description="train targets that a step asks of a sequence, drawn anew in every epoch; null: all"
    )
    learning_rate: float = Field(5e-3, gt=0, description="peak of the schedule")
    id_learning_rate: float = Field(1.0, gt=0, description="factor on the learning rate for id factors")
    encoder_learning_rate: float = Field(2e-5, gt=0, description="peak learning rate of the text encoder")
    weight_decay: float = Field(0.01, ge=0, description="AdamW, matrices only; id factors see id_weight_decay")
    id_weight_decay: float = Field(1.0, ge=0, description="AdamW on id factors")
    dense_rows: int = Field(
        50_000,
        ge=0,
        description="id tables of more rows are updated where a step uses them, not whole; what they learn is the same",
    )
    warmup: float = Field(0.05, ge=0, lt=1, description="share of all steps with rising learning rate")
    final_learning_rate: float = Field(0.02, ge=0, le=1, description="share of the peak that cosine decay ends at")
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    ema: float = Field(0.98, ge=0, lt=1, description="decay of the averaged weights that are evaluated; 0: none")
    horizon: float = Field(0.3, ge=0, le=1, description="share of sequences trained with the history cut at random")
    refresh: RefreshSpec = Field(default_factory=RefreshSpec, description="how the cache of text vectors is kept fresh")
    exact: bool = Field(False, description="no cache: every text of a step is encoded with gradient (slow)")
    choose: str | None = Field(
        None,
        description="valid metric that picks the best epoch, '<task>/<metric>'; null: the first binary task's AUC",
    )
    choose_protocol: Literal["streaming", "snapshot"] = Field("streaming", description="protocol of that metric")
    lower_is_better: bool = Field(False, description="True for losses and errors")
    patience: int = Field(1, ge=1, description="epochs without a better metric before stopping")
    fold: FoldSpec | None = Field(
        None, description="cross-validation: users who are not trained on, and alone are evaluated; null: all are both"
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: the text encoder's products while it is trained, if the device has them"
    )
