"""The data of the training arms, prepared in this process: no cluster is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.train.timing import Texts
from rayrank.batch import Catalogue
from rayrank.config import parse
from rayrank.learning.feed import Feed, steps_per_epoch
from rayrank.learning.inputs import TrainData
from rayrank.learning.spec import LearningSpec
from rayrank.models.build import build_ranker
from rayrank.models.encoder import TextEncoder
from rayrank.models.ranker import Ranker
from rayrank.models.spec import TeacherSpec
from rayrank.models.tuning import TuneSpec, tune
from rayrank.sources.build import build, run_here
from rayrank.sources.dataset import Dataset
from rayrank.sources.groups import LocalGroups, Shards
from rayrank.sources.spec import BuildSpec

CACHE_MB = 1024


@dataclass(frozen=True)
class Prepared:
    """A dataset with its tokenised texts."""

    dataset: Dataset
    texts: Texts

    @staticmethod
    def of(folder: Path, movielens: str | None, max_tokens: int) -> Prepared:
        """MovieLens where its files are, else a generated log."""
        generated = {"kind": "synthetic", "num_rows": 200_000, "num_users": 1000, "num_items": 2000}
        return Prepared.from_source(
            {"kind": "movielens", "path": movielens} if movielens else generated, folder, max_tokens
        )

    @staticmethod
    def from_source(source: Mapping[str, object], folder: Path, max_tokens: int) -> Prepared:
        """Of any source, by its config."""
        build(parse(BuildSpec, {"source": source, "path": str(folder)}), run_here, lambda _: None)
        dataset = Dataset.open(str(folder))
        return Prepared(dataset, Texts.of(["", *dataset.catalogue_table()["text"].to_pylist()], max_tokens))

    def catalogue(self) -> Catalogue:
        """Items with tokens, and vectors from the untrained encoder."""
        table = replace(self.dataset.catalogue(), token_ids=self.texts.token_ids, token_offsets=self.texts.offsets)
        with torch.no_grad():
            rows = torch.arange(len(table))
            vectors = self.texts.loaded.network.encode(self.texts.token_ids, self.texts.offsets, rows)
        return replace(table, vectors_ND=vectors)

    def teacher(self, encoder: TextEncoder, how: TuneSpec, seed: int = 0, spec: TeacherSpec | None = None) -> Ranker:
        """A fresh ranker around an encoder, which is tuned as asked."""
        tune(encoder, how)
        torch.manual_seed(seed)
        return build_ranker(spec or TeacherSpec(), self.dataset.schema, self.dataset.sizes(encoder.width), encoder)

    def feed(self, spec: LearningSpec) -> Feed:
        """Batches of one process."""
        return Feed(LocalGroups(Shards(self.dataset.path)), spec, cache_mb=CACHE_MB)

    def data(self, spec: LearningSpec, catalogue: Catalogue, validated: bool = False) -> TrainData:
        """What the loop reads."""
        feed = self.feed(spec)
        steps = steps_per_epoch(self.dataset.manifest, spec)
        return TrainData(catalogue, feed.steps, steps, (lambda: feed.evaluated("valid")) if validated else None)
