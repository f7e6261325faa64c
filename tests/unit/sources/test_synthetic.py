from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from rayrank.sources.build import build, run_here
from rayrank.sources.manifest import Manifest
from rayrank.sources.oracle import OracleSums, oracle_histograms
from rayrank.sources.spec import BuildSpec
from rayrank.sources.synthetic import Synthetic, SyntheticConfig
from rayrank.sources.synthetic_text import _TOWNS, TOPICS

SMALL = {"num_users": 600, "num_rows": 12_000, "num_items": 120}


def _events(**options: object) -> tuple[Synthetic, pa.Table]:
    source = Synthetic(SyntheticConfig(**options))  # type: ignore[arg-type]
    return source, pa.concat_tables([t for part in source.parts() for t in source.read(part)])


def _manifest(out: Path, **options: object) -> Manifest:
    spec = BuildSpec(source={"kind": "synthetic", **options}, path=str(out))  # type: ignore[arg-type]
    return build(spec, run_here, lambda _: None)[0]


def test_rows_are_exact_and_no_user_meets_an_item_twice() -> None:
    _, table = _events(**SMALL)
    assert table.num_rows == 12_000
    assert table["row"].to_pylist() == list(range(12_000))
    pairs = set(zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True))
    assert len(pairs) == 12_000
    assert len(set(table["user_id"].to_pylist())) == 600


def test_any_range_of_blocks_gives_the_same_rows() -> None:
    source, table = _events(**SMALL)
    (whole,) = source.parts()
    last = whole.model_copy(update={"start": 2, "first_row": source._first_row(2)})
    alone = pa.concat_tables(list(Synthetic(source.config).read(last)))
    assert alone.equals(table.slice(source._first_row(2)).combine_chunks().cast(alone.schema))


def test_seeds_differ_and_repeat() -> None:
    _, one = _events(**SMALL)
    _, same = _events(**SMALL)
    _, other = _events(**SMALL, seed=1)
    assert one.equals(same)
    assert not one["label_like"].equals(other["label_like"])


def test_texts_tell_the_topic() -> None:
    source = Synthetic(SyntheticConfig(num_items=120))
    for text, topic in zip(source.items()["description"].to_pylist(), source.world.topic_N, strict=True):
        words = [sum(w in text for w in (*t.heroes, *t.things, *t.deeds)) for t in TOPICS]
        assert int(np.argmax(words)) == topic


def test_two_words_tell_what_the_story_hides() -> None:
    source = Synthetic(SyntheticConfig(num_items=120, signal="veiled_text"))
    texts = source.items()["description"].to_pylist()
    said = [
        sum(topic * any(f" {town} " in text for town in towns) for topic, towns in enumerate(_TOWNS)) for text in texts
    ]
    assert said == source.world.topic_N.tolist()
    told = [int(np.argmax([sum(w in text for w in t.things) for t in TOPICS])) for text in texts]
    assert np.mean(np.array(told) == source.world.topic_N) < 0.4  # one in six by chance


def test_permuted_texts_are_the_same_texts_elsewhere() -> None:
    plain = Synthetic(SyntheticConfig(num_items=120)).items()
    mixed = Synthetic(SyntheticConfig(num_items=120, permute_texts=True)).items()
    assert sorted(plain["description"].to_pylist()) == sorted(mixed["description"].to_pylist())
    assert plain["description"].to_pylist() != mixed["description"].to_pylist()
    assert plain["item_id"].equals(mixed["item_id"])


@pytest.mark.parametrize("signal", ["text_and_ids", "text_only", "veiled_text"])
def test_oracle_bounds(tmp_path: Path, signal: str) -> None:
    manifest = _manifest(tmp_path / "out", signal=signal, num_users=3000, num_rows=120_000)
    assert manifest.counts.test >= 10_000
    assert set(manifest.oracle) == {"like", "finish"}
    for task, auc in manifest.oracle.items():
        assert 0.70 <= auc <= 0.85
        biases = manifest.oracle_biases[task]
        assert biases - 0.5 <= 0.6 * (auc - 0.5)
        assert signal == "text_and_ids" or biases == 0.5


def test_fitted_biases_recover_little_of_the_lift() -> None:
    source, table = _events(num_users=3000, num_rows=120_000)
    user = table["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    item = table["item_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    held = source._evaluated(np.bincount(user))
    for task in ("like", "finish"):
        label = table[f"label_{task}"].to_numpy()
        score = np.zeros(len(label))
        for key in (user, item):  # smoothed mean residuals, user then item
            total = np.bincount(key[~held], weights=(label - 0.5 - score)[~held], minlength=key.max() + 1)
            score = score + (total / (np.bincount(key[~held], minlength=key.max() + 1) + 10))[key]
        oracle = roc_auc_score(label[held], table[f"truth_{task}"].to_numpy()[held])
        assert roc_auc_score(label[held], score[held]) - 0.5 <= 0.6 * (oracle - 0.5)


def test_cold_items_are_those_of_valid_and_test_only() -> None:
    source, table = _events(**SMALL, signal="text_only", cold_items=0.4)
    user = table["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    held = source._evaluated(np.bincount(user))
    cold = {f"i{i:07d}" for i in np.flatnonzero(source.world.cold_N)}
    shown = np.array([i in cold for i in table["item_id"].to_pylist()])
    assert (shown == held).all()
    assert len(cold) == 48


def test_shuffled_labels_break_training_only() -> None:
    source, table = _events(**SMALL, shuffle_labels=True)
    user = table["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    held = source._evaluated(np.bincount(user))
    label, truth = table["label_like"].to_numpy(), table["truth_like"].to_numpy()
    assert abs(roc_auc_score(label[~held], truth[~held]) - 0.5) < 0.03
    assert roc_auc_score(label[held], truth[held]) > 0.7


def test_age_groups_lean_on_taste() -> None:
    source = Synthetic(SyntheticConfig())
    people = source._people(0)
    assert (people.age_U == people.archetype_U % 4).mean() > 0.7


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"num_rows": 2000, "num_users": 1500}, "at least 10"),
        ({"num_rows": 600_000, "num_users": 1500, "num_items": 300}, "raise num_items"),
        ({"cold_items": 0.3, "split": {"kind": "time"}}, "split.kind 'user'"),
        ({"cold_items": 0.01}, "too few cold items"),
    ],
)
def test_impossible_sizes_are_refused(options: dict[str, object], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        SyntheticConfig(**options)  # type: ignore[arg-type]


def test_a_pool_serves_catalogues_of_any_size() -> None:
    source, table = _events(num_users=300, num_rows=6000, num_items=5000)
    assert len(set(table["item_id"].to_pylist())) > 2000
    assert source.items().num_rows == 5000


def test_oracle_auc_from_histograms_is_the_auc() -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(size=4000).astype(np.float32)
    label = (rng.random(4000) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    halves = []
    for half in (slice(0, 1500), slice(1500, None)):
        events = pa.table({"truth_like": logit[half], "label_like": label[half]})
        halves.append(oracle_histograms(events, np.ones(events.num_rows, bool)))
    assert summed(halves) == pytest.approx(roc_auc_score(label, logit), abs=1e-4)
    assert summed([{"truth_like": [[3, 5, 0]]}]) == 0.5
    assert summed([{"truth_like": [[3, 1, 1]]}]) == 0.5


def summed(histograms: list[dict[str, Any]]) -> float:
    """AUC of the histograms together."""
    sums = OracleSums()
    for found in histograms:
        sums.add(found)
    return sums.auc("truth_")["like"]
