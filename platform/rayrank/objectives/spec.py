"""What is minimised: task weights, distillation, sampled softmax."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rayrank.config import Config


class MarginSpec(Config):
    """MarginMSE: squared differences of the teacher's and the student's margins (Hofstätter et al., 2020)."""

    weight: float = Field(0.3, ge=0, description="of the term; margins have no temperature: it would cancel")


class ListwiseSpec(Config):
    """A distribution over the candidates of a request, learnt from the teacher's."""

    weight: float = Field(0.5, ge=0, description="of the term")
    form: Literal["softmax", "sigmoid"] = Field(
        "softmax",
        description="softmax of logits, blind to their common shift; sigmoid: shares of the probabilities themselves "
        "(Bai et al., 2023), blind to their common factor",
    )


class RelaxedSpec(Config):
    """The teacher's best candidates in order, before the others in any order (relaxed ranking; Kang et al., 2020)."""

    weight: float = Field(0.1, ge=0, description="of the term")
    top: int = Field(2, ge=1, description="candidates of a request whose order counts")
    among: Literal["request", "best"] = Field(
        "request",
        description="the list: a request's targets and what is asked beside them; or, as published, the teacher's best "
        "candidates and the sampled items, which stand for all others",
    )


class MatchingSpec(Config):
    """The student's vectors, mapped to the teacher's width, point where the teacher's do.

    1 - cosine, which is half the squared difference of vectors of length one. The maps are linear, and dropped
    afterwards (cf. FitNets; Romero et al., 2015).
    """

    items: float = Field(0.0, ge=0, description="weight of the term in the vectors of the items that a step asks about")
    user: float = Field(0.0, ge=0, description="weight of the term in the user's state before each target")


class DistillationSpec(Config):
    """Soft labels of a teacher: (1 - mix) * hard + mix * soft at rated items (Hinton et al., 2015), soft at others."""

    mix: float = Field(0.0, ge=0, le=1, description="share of the soft term at items that the user has labelled")
    unseen: float = Field(
        0.8, ge=0, description="weight of the soft term at sampled other items, where the labels hold any"
    )
    unseen_items: int = Field(
        1, ge=1, description="sampled items that a step asks at each target; together they weigh ``unseen``"
    )
    best: float = Field(
        0.0, ge=0, description="weight of the soft term at the teacher's best candidates of a request, together"
    )
    best_items: int = Field(
        0,
        ge=0,
        description="of those, how many a step asks of each request, best first, where the labels hold any; with "
        "learning.targets_per_sequence only of requests whose first train target is drawn",
    )
    profiles: float = Field(
        0.0, ge=0, le=1, description="share of the soft term in the loss of user profiles (multiclass tasks)"
    )
    temperature: float = Field(
        2.0, gt=0, description="divides the logits of teacher and student; terms are scaled up accordingly"
    )
    margin: MarginSpec | None = Field(None, description="learn margins between the candidates of a request")
    listwise: ListwiseSpec | None = Field(None, description="learn a distribution over the candidates of a request")
    relaxed: RelaxedSpec | None = Field(None, description="learn the order of the teacher's best of a request")
    matching: MatchingSpec = Field(default_factory=MatchingSpec, description="learn the teacher's vectors themselves")
    confidence: float = Field(
        0.0,
        ge=0,
        description="soft terms weigh (1 - entropy / its maximum) to this power: less where the teacher is in doubt; "
        "0: all alike, and so do regression tasks",
    )
    agreement: float = Field(
        0.0,
        ge=0,
        description="soft terms weigh 1 / (1 + this * variance of the teachers' logits); 0, or one teacher: all alike",
    )
    auxiliary: bool = Field(
        False,
        description="the soft terms of event tasks train a second output layer that is dropped afterwards; what is "
        "served learns from hard labels, and shares all layers below",
    )

    @model_validator(mode="after")
    def _best_are_asked(self) -> DistillationSpec:
        among = self.relaxed is not None and self.relaxed.among == "best"
        if (self.best or among) and not self.best_items:
            raise ValueError("best and relaxed.among best are about the teacher's best candidates: set best_items")
        return self

    @property
    def lists(self) -> bool:
        """Whether any term compares the candidates of a request."""
        return bool(self.margin or self.listwise or self.relaxed)


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
