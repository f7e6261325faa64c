"""What the models make of data whose truth is known: taste read from texts, ids on top, nothing where there is none.

The lift is AUC − .5; the oracle's is that of the true probabilities on the same test targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from rayrank.batch import Catalogue, SequenceBatch
from rayrank.learning.inputs import TrainData, TrainSpec
from rayrank.learning.labels import Sampler, Teacher, taught
from rayrank.learning.plan import GroupInfo, micro_batches, plan, steps
from rayrank.learning.predict import Wanted, predict
from rayrank.learning.spec import LearningSpec
from rayrank.learning.train import train
from rayrank.metrics.summary import evaluate_scores
from rayrank.models.build import build_ranker
from rayrank.models.ranker import Ranker
from rayrank.models.spec import RankerSpec, StudentSpec, TeacherSpec
from rayrank.objectives.spec import DistillationSpec, ObjectiveSpec
from rayrank.schema import TEST, TRAIN
from rayrank.sources.build import build, run_here
from rayrank.sources.collate import collate
from rayrank.sources.dataset import Dataset
from rayrank.sources.encoders import PackageEncoder, resolve_encoder, tokenise
from rayrank.sources.spec import BuildSpec

pytestmark = [pytest.mark.slow, pytest.mark.long]
COLD = 0.5
"""item_id_dropout where what is ranked was never seen: half of a step's items are known by their content alone."""
SMALL = {"num_users": 1500, "num_items": 600, "num_rows": 60_000}


@dataclass(frozen=True)
class World:
    """A generated dataset in memory, with the frozen MiniLM vectors of its items."""

    dataset: Dataset
    groups: list[SequenceBatch]
    catalogue: Catalogue

    @property
    def oracle(self) -> dict[str, float]:
        """AUC of the true probabilities on test, by binary task."""
        return self.dataset.manifest.oracle

    def info(self) -> list[GroupInfo]:
        """Row groups as the plan wants them."""
        rows = [group for shard in self.dataset.manifest.shards for group in shard.row_groups]
        return [GroupInfo(0, n, g.sequences, g.max_length, g.train) for n, g in enumerate(rows)]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where datasets go."""
    return tmp_path_factory.mktemp("signal")


def world(folder: Path, **source: Any) -> World:
    name = "-".join(str(value) for value in source.values())
    spec = BuildSpec.model_validate({"source": {"kind": "synthetic", **source}, "path": str(folder / name)})
    build(spec, run_here, lambda _: None)
    dataset = Dataset.open(spec.path)
    texts = ["", *dataset.catalogue_table().column("text").to_pylist()]
    encoder = resolve_encoder(PackageEncoder(max_tokens=48))
    assert encoder is not None
    with torch.no_grad():
        tokens = tokenise(texts, encoder.tokenizer_json, encoder.max_tokens)
        vectors = encoder.network.encode(*tokens, torch.arange(len(texts)))
    groups = [collate(dataset.read_group(*place), dataset.schema) for place in dataset.groups()]
    return World(dataset, groups, replace(dataset.catalogue(), vectors_ND=vectors))


def learned(given: World, spec: RankerSpec) -> tuple[Ranker, dict[str, float]]:
    """A model trained with the defaults and seed 0, on soft labels where there are any; streaming metrics on test."""
    learning, objective = LearningSpec(), ObjectiveSpec(distillation=DistillationSpec())

    def epoch(number: int, start: int) -> Iterator[list[SequenceBatch]]:
        dealt = plan(given.info(), learning.seed, number, learning.lanes, learning.batch_events)
        lanes = [(b for ref in lane for b in micro_batches(given.groups[ref.group], ref)) for lane in dealt.lanes]
        return islice(steps(lanes), start, None)

    dataset = given.dataset
    torch.manual_seed(learning.seed)
    assert given.catalogue.vectors_ND is not None
    sizes = dataset.sizes(given.catalogue.vectors_ND.shape[1])
    model = build_ranker(spec, dataset.schema, sizes)
    valid = [group for group in given.groups if (group.part_BT == 2).any()]
    per_epoch = plan(given.info(), learning.seed, 0, learning.lanes, learning.batch_events).steps
    data = TrainData(given.catalogue, epoch, per_epoch, lambda: iter(valid))
    result = train(model, data, TrainSpec(learning, objective))
    tested = [group for group in given.groups if (group.part_BT == TEST).any()]
    scores = predict(model, result.catalogue, tested, Wanted("streaming", (TEST,), rank_items=False))
    return model, evaluate_scores(scores, dataset.schema)


def lifts(found: dict[str, float], oracle: dict[str, float]) -> dict[str, float]:
    return {task: (found[f"{task}/auc"] - 0.5) / (value - 0.5) for task, value in oracle.items()}


def test_taste_is_read_from_the_texts_of_items_never_seen(folder: Path) -> None:
    """No biases, no ids to learn from: test items are never seen in training. The student learns from the teacher."""
    given = world(folder, signal="text_only", num_users=2000, num_items=600, num_rows=80_000)
    teacher, found = learned(given, TeacherSpec(item_id_dropout=COLD))
    told = lifts(found, given.oracle)
    print("teacher", told)
    told_by, count_N = Teacher.of(teacher, given.catalogue), given.catalogue.count_N
    met = torch.zeros(len(count_N), dtype=torch.bool)
    for group in given.groups:
        met[group.events.item_BT[group.part_BT == TRAIN]] = True
    count_N = torch.where(met, count_N, -1.0)  # the student hears the teacher on trained items only
    sampler = Sampler(count_N, 4)
    labelled = [taught([told_by], group, sampler) for group in given.groups]
    for group in labelled:
        assert group.unseen_item_BTS is not None
        assert met[group.unseen_item_BTS[group.part_BT == TRAIN]].all()
    read = lifts(learned(replace(given, groups=labelled), StudentSpec(item_id_dropout=COLD))[1], given.oracle)
    print("student", read)
    assert min(*told.values(), *read.values()) >= 0.90, (told, read)


def test_permuted_texts_tell_nothing(folder: Path) -> None:
    given = world(folder, signal="text_only", permute_texts=True, **SMALL)
    found = learned(given, TeacherSpec())[1]
    assert all(abs(found[f"{task}/auc"] - 0.5) <= 0.02 for task in given.oracle), found


def test_with_ids_the_teacher_comes_near_the_oracle(folder: Path) -> None:
    given = world(folder, signal="text_and_ids", num_users=1000, num_items=600, num_rows=120_000)
    assert all(0.70 <= auc <= 0.85 for auc in given.oracle.values()), given.oracle
    for task, auc in given.dataset.manifest.oracle_biases.items():
        assert auc - 0.5 <= 0.6 * (given.oracle[task] - 0.5)
    assert given.dataset.manifest.counts.test >= 10_000
    found = lifts(learned(given, TeacherSpec())[1], given.oracle)
    print("text_and_ids", found, given.oracle)
    assert min(found.values()) >= 0.97, found


def test_shuffled_labels_teach_nothing(folder: Path) -> None:
    # More targets than in the other tests: two hundredths are then four standard errors of an AUC, not two and a half.
    given = world(folder, signal="text_and_ids", shuffle_labels=True, num_users=3000, num_items=600, num_rows=150_000)
    found = learned(given, TeacherSpec())[1]
    assert all(abs(found[f"{task}/auc"] - 0.5) <= 0.02 for task in given.oracle), found
