"""Models, baselines and the champion on the same targets: scores, metrics and paired differences.

What ``evaluate`` and ``compare`` tabulate and ``promote`` judges. Knows bundles, datasets and metrics; writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

from rayrank.batch import SequenceBatch
from rayrank.bundle import Bundle, load_bundle, read_info
from rayrank.config import ConfigError
from rayrank.learning.predict import Wanted, empty_scores, ranked_alike, scored
from rayrank.memory import release, releasing
from rayrank.metrics.bootstrap import Interval, Resamples, interval
from rayrank.metrics.evaluated import Evaluated, Judged
from rayrank.metrics.order import by_user, gauc
from rayrank.metrics.resampled import resampled
from rayrank.metrics.scores import Array, ProfileScores, Scores
from rayrank.metrics.summary import metrics_of
from rayrank.metrics.values import Reliability, reliability
from rayrank.pipeline.cost import Cost, measure_cost, one_thread
from rayrank.pipeline.score_files import ScoreFiles
from rayrank.pipeline.sliced import Sliced, sliced
from rayrank.pipeline.slices import Slicing
from rayrank.pipeline.targets import Baseline, evaluated_users, fit_baselines
from rayrank.schema import PARTS, BinaryTask, DatasetSchema, MulticlassTask, RetrievalTask
from rayrank.sources.collate import collate
from rayrank.sources.dataset import Dataset

Protocol = Literal["snapshot", "streaming"]
Part = Literal["valid", "test"]
Judging = Literal["auc", "gauc"]
Progress = Callable[[str], None]
BOTH = "both"
"""Protocol of a baseline: it scores by no history, so the two agree.

Ranks leave out what the user had seen, though: a baseline's are those of :attr:`Comparison.ranked_under`.
"""


@dataclass(frozen=True)
class Evidence:
    """What of the scores is kept for judging: metrics on every resample, and the judged task's calibration."""

    samples: Mapping[str, Array]  # '<task>/<metric>' -> float64 (R,)
    curve: Reliability
    slices: tuple[Sliced, ...] = ()

    @staticmethod
    def of(task: str, judged: Judged, resamples: Resamples) -> Evidence:
        """Resample the judged task once; differences between models are then differences of samples."""
        samples = {"auc": resamples.auc(judged), "gauc": resamples.means(by_user(judged, gauc))}
        return Evidence({f"{task}/{n}": v for n, v in samples.items()}, reliability(judged.label, judged.prediction))


@dataclass(frozen=True)
class Entry:
    """One line of the comparison."""

    model: str
    protocol: str
    metrics: Mapping[str, float]
    parameters: int
    evidence: Evidence
    baseline: bool = False
    cost: Cost | None = None
    bundle_id: str | None = None


@dataclass(frozen=True)
class Comparison:
    """All entries on one part of one dataset, about the same targets."""

    schema: DatasetSchema
    part: Part
    task: str  # binary task that order is judged on
    entries: tuple[Entry, ...]
    resamples: Resamples
    data_fingerprint: str = ""
    items: int = 0  # of the catalogue

    def find(self, model: str, protocol: str) -> Entry | None:
        """The entry of a model under a protocol; baselines and single-protocol runs answer for any."""
        mine = [e for e in self.entries if e.model == model]
        fitting = [e for e in mine if e.protocol in (protocol, BOTH)] or mine
        return fitting[0] if fitting else None

    @property
    def models(self) -> tuple[str, ...]:
        """Names of what is no baseline, in order."""
        return tuple(dict.fromkeys(e.model for e in self.entries if not e.baseline))

    @property
    def ranked_under(self) -> Protocol:
        """The protocol that the ranks of baselines are of."""
        return shown_under(tuple(e.protocol for e in self.entries))

    def best_baseline(self, metric: Judging) -> Entry | None:
        """The baseline that does best on the very targets that are judged."""
        found = [e for e in self.entries if e.baseline and f"{self.task}/{metric}" in e.metrics]
        return max(found, key=lambda e: e.metrics[f"{self.task}/{metric}"], default=None)

    def gain(self, metric: Judging, first: Entry, second: Entry) -> Interval:
        """metric(first) − metric(second) on the judged task, with an interval over users, paired by resample."""
        name = f"{self.task}/{metric}"
        value = first.metrics[name] - second.metrics[name]
        return interval(value, first.evidence.samples[name] - second.evidence.samples[name])

    def interval(self, metric: Judging, entry: Entry) -> Interval:
        """An entry's metric on the judged task, with an interval over users."""
        name = f"{self.task}/{metric}"
        return interval(entry.metrics[name], entry.evidence.samples[name])


@dataclass(frozen=True)
class Asked:
    """What to compare, and how thoroughly."""

    bundles: Mapping[str, str]  # name in the table -> bundle folder
    part: Part = "test"
    protocols: tuple[Protocol, ...] = ("snapshot", "streaming")
    task: str | None = None
    baselines: bool = True
    resamples: int = 500
    cost_candidates: int = 500
    cost_requests: int = 40  # 0: models are not timed
    seed: int = 0
    every: bool = False  # resample every metric, not only what order is judged by
    slicing: Slicing | None = None  # cut targets into slices too


def compared(dataset: Dataset, asked: Asked, progress: Progress, files: ScoreFiles | None = None) -> Comparison:
    """Score every bundle under every protocol, and the baselines, on one part; every score goes to ``files``.

    Raises:
        ConfigError: no binary task to judge on, no targets in the part, or a bundle made from other data.
    """
    task = judged_task(dataset.schema, asked.task)
    if getattr(dataset.manifest.counts, asked.part) == 0:
        raise ConfigError("part", asked.part, "the dataset has no targets in this part", "choose the other part")
    for path in asked.bundles.values():
        read_info(path)  # a bundle that there is not is told before the baselines are fitted
    resamples = Resamples.draw(evaluated_users(dataset, PARTS[asked.part]), asked.resamples, asked.seed)
    judge = _Judge(dataset.schema, task, resamples, files, asked)
    entries: list[Entry] = []
    if asked.baselines:
        for found in fit_baselines(dataset, PARTS[asked.part], progress):
            pieces = _ranked(found, dataset, asked)
            entries.append(judge.entry((found.name, BOTH), pieces, found.parameters, baseline=True)[0])
    for name, path in asked.bundles.items():
        bundle = load_bundle(path)
        check_data(bundle, dataset, name)
        entries += _evaluate_bundle((name, bundle), dataset, asked, judge, progress)
    manifest = dataset.manifest
    data, items = manifest.data_fingerprint, manifest.counts.items
    return Comparison(dataset.schema, asked.part, task, tuple(entries), resamples, data, items)


@dataclass(frozen=True)
class _Judge:
    """Turns scores into an entry, some at a time, and forgets them."""

    schema: DatasetSchema
    task: str
    resamples: Resamples
    files: ScoreFiles | None
    asked: Asked

    def entry(
        self,
        named: tuple[str, str],
        pieces: Iterable[Scores],
        parameters: int,
        profiles: Mapping[str, ProfileScores] | None = None,
        **about: Any,
    ) -> tuple[Entry, Mapping[str, ProfileScores]]:
        """An entry and its profiles, which are those given or come with the pieces."""
        name = file_name(*named)
        passing = self.files.through(name, pieces) if self.files else pieces
        found = Evaluated.join(map(self._kept, passing))
        found = found if profiles is None else replace(found, profiles=profiles)
        if self.files:
            self.files.write_profiles(name, found.profiles)
        release()
        evidence = self._evidence(found)
        metrics, profiles = metrics_of(found, self.schema), found.profiles
        del found
        release()
        return Entry(*named, metrics, parameters, evidence, **about), profiles

    def _kept(self, scores: Scores) -> Evaluated:
        return Evaluated.of(scores, self.asked.slicing.codes(scores) if self.asked.slicing else None)

    def _evidence(self, found: Evaluated) -> Evidence:
        judged = found.events[self.task]
        if not self.asked.every:
            return Evidence.of(self.task, judged, self.resamples)
        slices = sliced(found, self.schema, self.resamples, self.asked.slicing) if self.asked.slicing else ()
        curve = reliability(judged.label, judged.prediction)
        return Evidence(resampled(found, self.schema, self.resamples), curve, slices)


def check_data(bundle: Bundle, dataset: Dataset, name: str) -> None:
    """Refuse a bundle whose item and user numbers mean something else here.

    Raises:
        ConfigError: other schema or other data.
    """
    info, manifest = bundle.info, dataset.manifest
    if info.schema_fingerprint != manifest.fingerprint:
        rule = f"bundle was trained on another schema than dataset '{dataset.schema.name}'"
        raise ConfigError(name, str(bundle.path), rule, "give the dataset it was trained on")
    if info.data_fingerprint != manifest.data_fingerprint:
        rule = "bundle was trained on other data, so its item numbers differ"
        raise ConfigError(name, str(bundle.path), rule, "give the dataset it was trained on, or train again")


def _evaluate_bundle(
    named: tuple[str, Bundle], dataset: Dataset, asked: Asked, judge: _Judge, progress: Progress
) -> Iterator[Entry]:
    name, bundle = named
    cost = None
    if asked.cost_requests:
        progress(f"timing {name}")
        cost = measure_cost(bundle, dataset, asked.cost_candidates, asked.cost_requests)
    about = {"cost": cost, "bundle_id": bundle.bundle_id}
    # A profile is told from the history before valid and test, so both protocols share it; such users lie anywhere.
    profiles, everywhere = None, bool(dataset.schema.of_kind(MulticlassTask))
    for protocol in asked.protocols:
        progress(f"scoring {asked.part} with {name}, {protocol}")
        wanted = Wanted(protocol, (PARTS[asked.part],), window=bundle.info.window, profiles=profiles is None)
        batches = _batches(dataset, None if everywhere and profiles is None else asked.part)
        with one_thread():
            pieces = scored(bundle.model, bundle.catalogue(), batches, wanted)
            entry, profiles = judge.entry((name, protocol), pieces, bundle.info.parameters, profiles, **about)
        yield entry


def shown_under(protocols: Sequence[str]) -> Protocol:
    """What a baseline's ranks take for seen: what live serving does, where that is asked for."""
    return "snapshot" if "snapshot" in protocols and "streaming" not in protocols else "streaming"


def _ranked(found: Baseline, dataset: Dataset, asked: Asked) -> Iterator[Scores]:
    """A baseline's scores behind the ranks of all, which come from a pass of their own and without targets."""
    wanted = Wanted(shown_under(asked.protocols), (PARTS[asked.part],))
    ranked = [task for task in dataset.schema.of_kind(RetrievalTask) if task.name in found.values]
    nothing = {task.name: empty_scores(dataset.schema).retrieval[task.name] for task in ranked}
    pieces = iter(found.scores)
    first = next(pieces)
    for task in ranked:
        for ranks in ranked_alike(found.values[task.name], task, _batches(dataset, asked.part), wanted):
            yield replace(first.none(), retrieval=nothing | {task.name: ranks})
    for piece in chain([first], pieces):
        yield replace(piece, retrieval=nothing)


def _batches(dataset: Dataset, part: Part | None) -> Iterator[SequenceBatch]:
    for shard, group in releasing(dataset.groups()):
        info = dataset.manifest.shards[shard].row_groups[group]
        if part is None or getattr(info, part):
            yield collate(dataset.read_group(shard, group), dataset.schema)


def judged_task(schema: DatasetSchema, task: str | None) -> str:
    """The binary task that order is judged on: ``task``, or that of retrieval, or the first.

    Raises:
        ConfigError: no binary task, or ``task`` is none.
    """
    binary = [t.name for t in schema.of_kind(BinaryTask)]
    if not binary:
        rule = "order is judged on a binary task and the schema has none"
        raise ConfigError("task", task, rule, "add one, e.g. {kind: binary, name: like, column: rating, at_least: 4}")
    if task is not None and task not in binary:
        raise ConfigError("task", task, "must be a binary task of the dataset", f"one of: {', '.join(binary)}")
    if task is not None:
        return task
    retrieval = schema.of_kind(RetrievalTask)
    return retrieval[0].positive if retrieval else binary[0]


def file_name(model: str, protocol: str) -> str:
    """A plain file name for an entry."""
    return re.sub(r"[^\w-]+", "_", f"{model}-{protocol}").strip("_")


def kept_lift(student: float, teacher: float) -> float:
    """Share of the teacher's lift over chance, (AUC − 0.5), that the student keeps; NaN when there is none."""
    return (student - 0.5) / (teacher - 0.5) if teacher > 0.5 else float("nan")


def named(bundles: Sequence[tuple[str, str | None]]) -> dict[str, str]:
    """The bundles that were given, in order."""
    return {name: path for name, path in bundles if path is not None}
