"""A cross teacher's bundle: saved, loaded and verified, asked about catalogue items and described ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rayrank.bundle import Bundle, load_bundle
from rayrank.models.spec import CrossSpec
from rayrank.ranking.context import ColdItems, UserContext
from rayrank.ranking.items import DESCRIBED
from rayrank.ranking.scorer import Scorer
from rayrank.ranking.store import History
from tests.tiny_release import ITEMS, items_table, save_teacher

TASKS = ("like", "rating")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder: Path = tmp_path_factory.mktemp("cross") / "teacher"
    save_teacher(folder, CrossSpec(width=8, id_width=4, item_tokens=4, recent=2))
    return load_bundle(folder)


def context() -> UserContext:
    labels = {task: np.array([1.0, 0.0, 1.0], np.float32) for task in TASKS}
    number = np.arange(3, dtype=np.int32)
    history = History(number + 4, number, 1_000_000 + number.astype(np.int64), labels)
    return UserContext(history, 2_000_000, 1, {"age": np.asarray(1)}, {"device": np.asarray(1)})


def test_it_is_a_teacher_with_tokens_and_text_vectors(bundle: Bundle) -> None:
    assert bundle.info.role == "teacher"
    assert bundle.info.spec.kind == "cross"
    table = bundle.catalogue()
    assert table.tokens_NL is not None
    assert table.tokens_NL.shape == (ITEMS + 1, 4)
    assert (table.tokens_NL[0] == -1).all()
    assert bundle.text_ND is not None
    with torch.no_grad():
        torch.testing.assert_close(bundle.model.item_vectors(table), bundle.items_NW, rtol=1e-5, atol=1e-6)


def test_an_item_described_by_its_text_scores_like_itself_where_ids_do_not_count(bundle: Bundle) -> None:
    model = bundle.model
    trained, rows = model.trained_items_N.clone(), np.arange(1, 6)
    model.trained_items_N.zero_()
    try:
        with torch.no_grad():
            wordless = replace(bundle, items_NW=model.item_vectors(bundle.catalogue()))
        texts = tuple(items_table().column("text").to_pylist()[:5])
        features = {name: value[1:6].numpy() for name, value in bundle.catalogue().features.items()}
        cold = ColdItems(tuple("abcde"), texts, features)
        scorer = Scorer(wordless)
        known = scorer.score(context(), rows, ColdItems())
        described = scorer.score(context(), rows - 1 + DESCRIBED, cold)
    finally:
        model.trained_items_N.copy_(trained)
    assert described.cold_vectors is not None
    np.testing.assert_allclose(described.cold_vectors, bundle.text_ND[1:6].numpy(), atol=1e-5)  # type: ignore[index]
    for task in TASKS:
        assert known.scores[task].std() > 1e-3
        np.testing.assert_allclose(described.scores[task], known.scores[task], atol=1e-5)
