"""A tiny random world for tests of models, objectives and learning: every kind of task and feature, ties, padding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from rayrank.batch import FAR, Catalogue, Events, SequenceBatch
from rayrank.models.build import build_ranker
from rayrank.models.encoder import build_encoder
from rayrank.models.ranker import Ranker
from rayrank.models.spec import (
    CrossSpec,
    Inputs,
    RankerSpec,
    SequenceStudentSpec,
    Sizes,
    StudentSpec,
    TeacherSpec,
    TwoTowerSpec,
)
from rayrank.schema import (
    BinaryTask,
    CategoricalFeature,
    DatasetSchema,
    MulticlassTask,
    NumericFeature,
    RegressionTask,
    RetrievalTask,
)

ITEMS, USERS, TEXT = 20, 9, 6

SCHEMA = DatasetSchema(
    name="tiny",
    tasks=(
        BinaryTask(name="like", column="liked"),
        RegressionTask(name="stars", column="stars", low=1.0, high=5.0),
        MulticlassTask(name="age", column="age", classes=("a", "b", "c")),
        RetrievalTask(name="next", positive="like"),
    ),
    user_features=(
        CategoricalFeature(name="group", column="group"),
        NumericFeature(name="income", column="income"),
    ),
    item_features=(
        CategoricalFeature(name="genres", column="genres", separator="|", max_values=3),
        NumericFeature(name="year", column="year"),
    ),
    context_features=(CategoricalFeature(name="device", column="device"),),
    text="{title}",
)
SIZES = Sizes(
    users=USERS + 1,
    items=ITEMS + 1,
    user_categories={"group": 4},
    item_categories={"genres": 5},
    context_categories={"device": 3},
    text_width=TEXT,
)
KINDS = ("teacher", "attentive", "student", "sequence", "two_tower", "cross")
TOKENS = 5
BERT = {"model_type": "bert", "vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": 16, "initializer_range": 0.3}  # fmt: skip


def spec_of(kind: str, **changes: Any) -> RankerSpec:
    """A small spec: ``attentive`` is the teacher with everything switched on."""
    if kind == "cross":
        small = {"width": 8, "id_width": 4, "retrieval_width": 4, "item_tokens": TOKENS, "recent": 2}
        return CrossSpec(**{**small, **changes})
    sizes = {"width": 8, "id_width": 4, "taste_width": 3, "retrieval_width": 4}
    if kind == "student":
        return StudentSpec(**{**sizes, "hidden": 8, "recent": 2, **changes})
    if kind == "sequence":
        return SequenceStudentSpec(**{**sizes, "hidden": 8, "recent": 2, "attention_heads": 2, **changes})
    if kind == "two_tower":
        return TwoTowerSpec(**{**sizes, "hidden": 8, "recent": 2, **changes})
    more = {"attention": True, "layers": 1} if kind == "attentive" else {}
    return TeacherSpec(**{**sizes, "attention_heads": 2, **more, **changes})


def model_of(kind: str, seed: int = 0, inputs: Inputs | None = None, **changes: Any) -> Ranker:
    """A random ranker whose every weight is away from its start, with all ids trained."""
    torch.manual_seed(seed)
    encoder = build_encoder(BERT) if kind == "cross" else None
    model = build_ranker(spec_of(kind, inputs=inputs or Inputs(), **changes), SCHEMA, SIZES, encoder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.trained_items_N.fill_(1.0)
    model.trained_users_U.fill_(1.0)
    return model.eval()


def catalogue(seed: int = 1) -> Catalogue:
    """Items with several genres, a year, a text vector and two to five tokens; the unknown item has none."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.nn.functional.normalize(torch.randn(ITEMS + 1, TEXT, generator=generator), dim=-1)
    features = {
        "genres": torch.randint(0, 5, (ITEMS + 1, 3), generator=generator),
        "year": torch.randn(ITEMS + 1, generator=generator),
    }
    tokens = torch.randint(4, 30, (ITEMS + 1, TOKENS), generator=generator, dtype=torch.int32)
    length = torch.randint(2, TOKENS + 1, (ITEMS + 1, 1), generator=generator) * (torch.arange(ITEMS + 1) > 0)[:, None]
    tokens[torch.arange(TOKENS) >= length] = -1
    return Catalogue(features, torch.arange(ITEMS + 1).float(), vectors_ND=vectors, tokens_NL=tokens)


def batch(sequences: int = 3, length: int = 8, seed: int = 2, first_key: int = 0) -> SequenceBatch:
    """Random histories: two events share each second request, sequence b has b padded positions, one label in five
    is missing; the last quarter is test, the one before valid."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    size = (sequences, length)
    step = torch.tensor([0 if t % 4 == 1 else 1 for t in range(length)])
    request_BT = step.cumsum(0).expand(size).clone().to(torch.int32)
    padded_BT = torch.arange(length) >= (length - torch.arange(sequences) % 3).unsqueeze(1)
    request_BT[padded_BT] = FAR
    part_BT = torch.ones(size, dtype=torch.int8)
    part_BT[:, length // 2 :] = 2
    part_BT[:, length * 3 // 4 :] = 3
    part_BT[padded_BT] = 0
    missing_BT = padded_BT | (random(*size) < 0.2)
    nan = torch.tensor(float("nan"))
    events = Events(
        item_BT=torch.randint(1, ITEMS + 1, size, generator=generator).masked_fill(padded_BT, 0),
        request_BT=request_BT,
        time_BT=1_600_000_000 + request_BT.clamp_max(10_000).long() * 5_000,
        labels_BT={
            "like": torch.where(missing_BT, nan, (random(*size) < 0.5).float()),
            "stars": torch.where(missing_BT, nan, 1.0 + 4.0 * random(*size)),
        },
        user_B=torch.arange(sequences) % USERS + 1,
        user_features={"group": torch.randint(0, 4, (sequences,), generator=generator), "income": random(sequences)},
        key_B=torch.arange(sequences) + first_key,
        history_BT=torch.ones(size, dtype=torch.bool),
    )
    row_BT = (torch.arange(sequences * length).view(size) + 1000 * first_key).masked_fill(padded_BT, -1)
    return SequenceBatch(
        events=events,
        context={"device": torch.randint(0, 3, size, generator=generator)},
        part_BT=part_BT,
        row_BT=row_BT,
        valid_from_B=request_BT[:, length // 2].clone(),
        test_from_B=request_BT[:, length * 3 // 4].clone(),
        profile_B={"age": torch.randint(0, 3, (sequences,), generator=generator)},
        profile_hidden_B={"age": torch.arange(sequences) % 4 == 3},
    )


def with_labels(given: SequenceBatch, **labels: torch.Tensor) -> SequenceBatch:
    """The batch with other labels."""
    return replace(given, events=replace(given.events, labels_BT={**given.events.labels_BT, **labels}))


def steps_of(batches: list[SequenceBatch], lanes: int, rank: int = 0, world: int = 1) -> Iterator[list[SequenceBatch]]:
    """Batches dealt to lanes in turn; the steps of one rank."""
    for start in range(0, len(batches), lanes):
        yield batches[start : start + lanes][rank::world]


def only(events: Events, sequence: int, places: torch.Tensor) -> Events:
    """Some events of one sequence, as if there had been no others."""
    return replace(
        events,
        item_BT=events.item_BT[sequence, places].unsqueeze(0),
        request_BT=events.request_BT[sequence, places].unsqueeze(0),
        time_BT=events.time_BT[sequence, places].unsqueeze(0),
        labels_BT={n: v[sequence, places].unsqueeze(0) for n, v in events.labels_BT.items()},
        user_B=events.user_B[sequence : sequence + 1],
        user_features={n: v[sequence : sequence + 1] for n, v in events.user_features.items()},
        key_B=events.key_B[sequence : sequence + 1],
        history_BT=None,
    )
