"""Merging: whatever the partition over ranks, the same scores and the same metrics."""

from dataclasses import replace

import numpy as np
import pytest

from rayrank.metrics.scores import ProfileScores, RetrievalScores, Scores, merge
from rayrank.metrics.summary import evaluate_scores
from rayrank.schema import (
    TEST,
    VALID,
    BinaryTask,
    DatasetSchema,
    MulticlassTask,
    RegressionTask,
    RetrievalTask,
)

SCHEMA = DatasetSchema(
    name="made",
    tasks=(
        BinaryTask(name="like", column="rating", at_least=4),
        RegressionTask(name="rating", column="rating", low=1, high=5),
        MulticlassTask(name="gender", column="gender", classes=("F", "M")),
        RetrievalTask(name="next", positive="like"),
    ),
)


def made(rows=600, users=50, seed=0):
    generator = np.random.default_rng(seed)
    label = (generator.random(rows) < 0.4).astype(np.float32)
    label[generator.random(rows) < 0.1] = np.nan
    logit = np.round(generator.normal(size=rows) + np.nan_to_num(label), 1).astype(np.float32)
    return Scores(
        row=generator.permutation(rows).astype(np.int64),
        user=generator.integers(1, users, rows),
        request=generator.integers(0, 9, rows).astype(np.int32),
        item=generator.integers(1, 99, rows),
        part=generator.choice([VALID, TEST], rows).astype(np.int8),
        labels={"like": label, "rating": generator.integers(1, 6, rows).astype(np.float32)},
        predictions={"like": 1 / (1 + np.exp(-logit)), "rating": 3 + logit},
        logits={"like": logit, "rating": logit},
        profiles={
            "gender": ProfileScores(
                np.arange(1, users),
                generator.integers(0, 2, users - 1).astype(np.int16),
                generator.dirichlet([1, 1], users - 1).astype(np.float32),
                generator.random(users - 1) < 0.4,
            )
        },
        retrieval={
            "next": RetrievalScores(
                np.arange(rows, dtype=np.int64),
                generator.integers(1, users, rows),
                generator.integers(1, 99, rows),
                generator.choice([VALID, TEST], rows).astype(np.int8),
                generator.integers(1, 300, rows).astype(np.int32),
            )
        },
    )


def dealt(scores, world):
    """The scores as ``world`` ranks would hold them, users dealt round robin."""
    gender, found = scores.profiles["gender"], scores.retrieval["next"]
    for rank in range(world):
        g, r = gender.user % world == rank, found.user % world == rank
        yield replace(
            scores._take(scores.user % world == rank),
            profiles={
                "gender": ProfileScores(gender.user[g], gender.label[g], gender.probabilities[g], gender.hidden[g])
            },
            retrieval={
                "next": RetrievalScores(found.row[r], found.user[r], found.item[r], found.part[r], found.rank[r])
            },
        )


@pytest.mark.parametrize("world", [1, 2, 3])
def test_metrics_do_not_depend_on_the_number_of_ranks(world):
    scores = made()
    whole = evaluate_scores(merge([scores]), SCHEMA)
    parts = list(dealt(scores, world))
    assert sum(len(part) for part in parts) == len(scores)
    merged = merge(parts[::-1])
    assert evaluate_scores(merged, SCHEMA) == pytest.approx(whole, abs=1e-9, nan_ok=True)
    assert merged.row.tolist() == sorted(scores.row.tolist())
    assert merged.profiles["gender"].user.tolist() == list(range(1, 50))


def test_merge_keeps_columns_aligned():
    scores = made()
    merged = merge(list(dealt(scores, 3)))
    back = np.argsort(scores.row)
    for name, values in scores.columns().items():
        np.testing.assert_array_equal(merged.columns()[name], values[back], err_msg=name)


def test_merge_refuses_nothing_and_parts_with_other_tasks():
    with pytest.raises(ValueError, match="no scores"):
        merge([])
    with pytest.raises(ValueError, match="disagree on labels"):
        merge([made(), replace(made(), labels={})])
