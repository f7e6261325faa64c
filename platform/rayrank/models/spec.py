"""What a ranker is made of: typed specs that travel with bundles, and the sizes of its vocabularies."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from rayrank.config import Config
from rayrank.schema import DatasetSchema


class Inputs(Config):
    """Which inputs a model sees; each can be switched off for an ablation."""

    text: bool = Field(True, description="item text vectors (teacher: from the encoder; student: distilled table)")
    item_attributes: bool = Field(True, description="item features of the schema")
    item_id: bool = Field(True, description="a learned factor per item trained on")
    history: bool = Field(True, description="the user's earlier events")
    history_labels: bool = Field(True, description="the labels given in those events")
    time: bool = Field(True, description="time gaps, hour and weekday")
    user_id: bool = Field(True, description="a learned factor per user trained on (never in profile heads)")
    user_attributes: bool = Field(True, description="user features of the schema (never in profile heads)")
    context: bool = Field(True, description="context features of the interaction")


class SharedBottomSpec(Config):
    """One expert shared by all tasks."""

    kind: Literal["shared"] = "shared"
    width: int = Field(64, ge=1, description="width of the shared layers")


class MMoESpec(Config):
    """Multi-gate mixture of experts (Ma et al., KDD 2018)."""

    kind: Literal["mmoe"] = "mmoe"
    experts: int = Field(4, ge=1, description="experts, mixed by one gate per task")
    width: int = Field(64, ge=1, description="width of an expert")


class PLESpec(Config):
    """Progressive layered extraction, one level (Tang et al., RecSys 2020)."""

    kind: Literal["ple"] = "ple"
    shared_experts: int = Field(2, ge=1, description="experts that every task's gate sees")
    task_experts: int = Field(1, ge=1, description="experts of each task alone")
    width: int = Field(64, ge=1, description="width of an expert")


HeadsSpec = Annotated[SharedBottomSpec | MMoESpec | PLESpec, Field(discriminator="kind")]


class _BlendedSpec(Config):
    """What every ranker has: its inputs, the static path, and the blend of both paths."""

    is_student: ClassVar[bool] = False
    inputs: Inputs = Field(default_factory=Inputs, description="which inputs the model sees")
    id_width: int = Field(32, ge=1, description="width of the user and item id factors")
    retrieval_width: int = Field(32, ge=1, description="width of the retrieval vectors, without the bias entry")
    static_dropout: float = Field(0.0, ge=0, lt=1, description="dropout of the static path")
    static_share: float = Field(0.4, ge=0, le=1, description="weight of the static logits, until valid chooses it")
    item_id_dropout: float = Field(0.05, ge=0, lt=1, description="share of items trained as unknown in a step")
    user_id_dropout: float = Field(0.1, ge=0, lt=1, description="share of users trained as unknown in a step")


class TeacherSpec(_BlendedSpec):
    """A static path over ids, attributes and text, blended with a sequence path that reads the user's events."""

    kind: Literal["teacher"] = "teacher"
    width: int = Field(64, ge=8, description="D, width of item vectors and event tokens")
    layers: int = Field(0, ge=0, description="causal transformer layers over the events")
    attention_heads: int = Field(4, ge=1, description="heads of every attention; divides width")
    taste_width: int = Field(16, ge=1, description="d, width of the item vectors of the regression in context")
    recent: int = Field(16, ge=1, description="events that count as recent")
    attention: bool = Field(False, description="candidates read the events by attention too, beside the regression")
    heads: HeadsSpec = Field(default_factory=MMoESpec, description="how event tasks share the layers on top")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout of hidden layers of the sequence path")


class _StudentSpec(_BlendedSpec):
    """What students share: both paths over a distilled item table."""

    is_student: ClassVar[bool] = True
    width: int = Field(32, ge=4, description="D, width of the item vectors that are averaged over the history")
    hidden: int = Field(64, ge=4, description="H, width of the split first layer")
    taste_width: int = Field(16, ge=1, description="d, width of the item vectors of the regression in context")
    recent: int = Field(16, ge=1, description="events that count as recent")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout of hidden layers")


class StudentSpec(_StudentSpec):
    """No language model and no attention: the two paths in their cheapest form, over a distilled item table."""

    kind: Literal["student"] = "student"


class SequenceStudentSpec(_StudentSpec):
    """The student with a small causal transformer over the events beside the regression and the means."""

    kind: Literal["sequence"] = "sequence"
    layers: int = Field(1, ge=1, description="causal transformer layers over the events")
    attention_heads: int = Field(2, ge=1, description="heads of every attention; divides width")


class TwoTowerSpec(_StudentSpec):
    """A user vector per task times an item vector, and biases: a candidate costs one inner product per task."""

    kind: Literal["two_tower"] = "two_tower"
    hidden: int = Field(64, ge=4, description="H, width of the hidden layer of the user's tower")


class CrossSpec(_BlendedSpec):
    """The literal form: history, context and candidate as one text, blended with a static path over ids and attributes.

    Every candidate is a pass of the encoder, so it is slow; what it knows of an item is its text.
    """

    kind: Literal["cross"] = "cross"
    inputs: Inputs = Field(default_factory=Inputs, description="which inputs the model sees; text must be one")
    item_tokens: int = Field(24, ge=2, description="tokens of an item's text, special ones included; the rest is cut")
    recent: int = Field(8, ge=1, description="events of the history that the text shows, the latest ones")
    width: int = Field(64, ge=8, description="D, width of the item vectors that profiles and retrieval read")
    heads: HeadsSpec = Field(default_factory=MMoESpec, description="how event tasks share the layers on top")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout of hidden layers above the encoder")


AnyStudentSpec = StudentSpec | SequenceStudentSpec | TwoTowerSpec
RankerSpec = Annotated[TeacherSpec | CrossSpec | AnyStudentSpec, Field(discriminator="kind")]


def item_columns(spec: RankerSpec) -> slice:
    """The columns of a packed item row that hold the item's vector (D), as the history reads it."""
    start = spec.item_tokens if isinstance(spec, CrossSpec) else 0
    return slice(start, start + spec.width)


def state_width(spec: RankerSpec, schema: DatasetSchema) -> int:
    """Columns of a user's state (``Ranker.known``): label-aware means of the history, what attention pools of it."""
    tasks = len(schema.event_tasks) if spec.inputs.history_labels else 0
    pooled = isinstance(spec, TeacherSpec | SequenceStudentSpec)
    return (2 + tasks + pooled) * spec.width + tasks + 1


class Sizes(Config):
    """Vocabulary sizes that the parameters depend on; index 0 of each is unknown."""

    users: int = Field(ge=1, description="users + 1")
    items: int = Field(ge=1, description="items + 1")
    user_categories: dict[str, int] = Field(default_factory=dict, description="user feature -> categories + 1")
    item_categories: dict[str, int] = Field(default_factory=dict, description="item feature -> categories + 1")
    context_categories: dict[str, int] = Field(default_factory=dict, description="context feature -> categories + 1")
    text_width: int = Field(0, ge=0, description="width of Catalogue.vectors_ND or of the encoder; 0: none")
