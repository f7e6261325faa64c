"""How a bundle is made smaller, and how far its scores may move."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rayrank.config import Config


class Recovery(Config):
    """Training after pruning: the smaller encoder learns to give the original's text vectors again."""

    steps: int = Field(400, ge=0, description="optimiser steps; 0: none")
    texts: int = Field(16, ge=1, description="texts of a step")
    learning_rate: float = Field(3e-4, gt=0, description="highest rate of AdamW; warmed up, then falling to 0")
    seed: int = Field(0, ge=0, description="of the order of the texts")


class Prune(Config):
    """Layers, attention heads and feed-forward neurons of the text encoder are taken out, the least important first."""

    kind: Literal["prune"] = "prune"
    layers: int | None = Field(None, ge=1, description="layers that are kept; null: all")
    heads: int | None = Field(None, ge=1, description="attention heads kept in each layer; null: all")
    feed_forward: int | None = Field(None, ge=1, description="feed-forward neurons kept in each layer; null: all")
    judged_texts: int = Field(128, ge=1, description="texts that importance is measured on")
    recovery: Recovery = Field(default_factory=Recovery, description="training that follows")

    @model_validator(mode="after")
    def _something(self) -> Prune:
        if self.layers is None and self.heads is None and self.feed_forward is None:
            raise ValueError("give at least one of layers, heads and feed_forward: how many are kept")
        return self


class Bf16(Config):
    """The text encoder's weights and sums in bfloat16: half the size."""

    kind: Literal["bf16"] = "bf16"


class Int8(Config):
    """The linear layers of the text encoder with int8 weights and inputs."""

    kind: Literal["int8"] = "int8"
    inputs: Literal["dynamic", "static"] = Field(
        "dynamic", description="how inputs are rounded: by a scale per token, or by ranges measured once on item texts"
    )
    judged_texts: int = Field(256, ge=1, description="texts that static ranges are measured on")


class Onnx(Config):
    """The text encoder as a graph that ONNX Runtime computes (``pip install 'rayrank[onnx]'``)."""

    kind: Literal["onnx"] = "onnx"
    int8: Literal["none", "dynamic", "static"] = Field(
        "none", description="int8 products; inputs by the range of a batch, or by ranges measured once on item texts"
    )
    judged_texts: int = Field(64, ge=1, description="texts that static ranges are measured on")


class OnnxRanker(Config):
    """What answers requests as two graphs that ONNX Runtime computes: user state, candidates given the user state."""

    kind: Literal["onnx_ranker"] = "onnx_ranker"


class StudentRecovery(Config):
    """Training after units are gone: the smaller student learns to say what the original says."""

    steps: int = Field(400, ge=0, description="optimiser steps; 0: none")
    sequences: int = Field(16, ge=1, description="sequences of a step")
    learning_rate: float = Field(3e-3, gt=0, description="highest rate of AdamW; warmed up, then falling to 0")
    seed: int = Field(0, ge=0, description="of the order of the sequences")


class Narrow(Config):
    """Units of a student's hidden layers and item vectors are taken out, the least important first."""

    kind: Literal["narrow"] = "narrow"
    hidden: int | None = Field(None, ge=4, description="units kept of the split first layer (half as many above it)")
    width: int | None = Field(None, ge=4, description="columns kept of the item vectors that histories average")
    taste_width: int | None = Field(None, ge=1, description="columns kept of the regression's item vectors")
    judged_batches: int = Field(8, ge=1, description="batches that importance is measured on")
    recovery: StudentRecovery = Field(default_factory=StudentRecovery, description="training that follows")

    @model_validator(mode="after")
    def _something(self) -> Narrow:
        if self.hidden is None and self.width is None and self.taste_width is None:
            raise ValueError("give at least one of hidden, width and taste_width: how many are kept")
        return self


MethodSpec = Annotated[Prune | Bf16 | Int8 | Onnx | OnnxRanker | Narrow, Field(discriminator="kind")]


class GateLimits(Config):
    """How far a compressed bundle may be from its original; null leaves a number out."""

    max_score_difference: float | None = Field(
        0.1, ge=0, description="largest difference of any score; probabilities, regressions as a share of their scale"
    )
    min_kendall_tau: float | None = Field(
        0.9, le=1, description="least Kendall tau-b between both orders of a request's candidates, mean over requests"
    )
    max_ndcg_drop: float | None = Field(0.005, description="most NDCG@10 that a binary task loses (snapshot)")
    max_logloss_ratio: float | None = Field(
        1.01, gt=0, description="largest LogLoss of a binary task, compressed over original (streaming)"
    )

    def by_name(self) -> dict[str, float | None]:
        """Limits by the names of what they limit."""
        return {name.removeprefix("max_").removeprefix("min_"): limit for name, limit in self}
