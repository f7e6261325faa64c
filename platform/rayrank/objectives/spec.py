"""What is minimised: task weights, distillation, sampled softmax."""

from __future__ import annotations

from pydantic import Field

from rayrank.config import Config


class DistillationSpec(Config):
    """Soft labels of a teacher: (1 - mix) * hard + mix * soft at rated items (Hinton et al., 2015), soft at others."""

    mix: float = Field(0.0, ge=0, le=1, description="share of the soft term at items that the user has labelled")
    unseen: float = Field(
        0.8, ge=0, description="weight of the soft term at sampled other items, where the labels hold any"
    )
    temperature: float = Field(
        2.0, gt=0, description="divides both logits of binary tasks; the term is scaled by its square"
    )


class ObjectiveSpec(Config):
    """Σ over tasks of weight times loss."""

    weights: dict[str, float] = Field(
        default_factory=dict, description="task -> weight; tasks left out get 0, no entry at all means 1/T each"
    )
    distillation: DistillationSpec | None = Field(None, description="learn from soft labels where a batch has them")
    negatives: int = Field(
        512, ge=0, description="sampled items of a step that all retrieval queries share; 0 only with in_batch"
    )
    negative_power: float = Field(0.5, ge=0, description="items are sampled in proportion to (count + 1) to this power")
    in_batch: bool = Field(
        False, description="the positives of a micro-batch are negatives of its other users' retrieval queries too"
    )
    mined: bool = Field(True, description="the teacher's hard negatives are negatives too, where the labels hold any")
    regression_scale: float = Field(4.0, gt=0, description="multiplies the squared error of labels scaled to 0..1")
