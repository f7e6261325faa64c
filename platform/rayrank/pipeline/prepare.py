"""The prepare job: raw interactions to a dataset of user-sequence shards. See docs/data_format.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from pydantic import Field

from rayrank.on_ray.cluster import ClusterConfig, check_capacity, ensure_cluster
from rayrank.on_ray.prepare import run_on_ray
from rayrank.schema import DatasetSchema, PopularityNegatives, item_columns_needed
from rayrank.sources.append import append
from rayrank.sources.build import build, complete, run_here
from rayrank.sources.leftovers import held_manifest
from rayrank.sources.manifest import Manifest
from rayrank.sources.spec import BuildSpec
from rayrank.wording import counted

Progress = Callable[[str], None]


class PrepareConfig(BuildSpec):
    """What to read, where to write, and where the work runs."""

    append: bool = Field(
        False, description="add the source's interactions to the dataset in path as new shards; the old ones stay"
    )
    engine: Literal["ray", "local"] = Field("ray", description="ray: Ray Data tasks; local: a plain loop, same bytes")
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="where Ray runs")


@dataclass(frozen=True)
class PrepareResult:
    """A dataset and whether this run wrote it."""

    path: str
    manifest: Manifest
    written: bool
    warnings: tuple[str, ...] = field(default=())

    def summary(self) -> list[str]:
        """What was made and where."""
        counts, name = self.manifest.counts, self.manifest.dataset_schema.name
        sampled = f" ({counts.negatives:,} of them sampled negatives)" if counts.negatives else ""
        lines = [
            f"dataset {name} {'written to' if self.written else 'is already complete in'} {self.path}",
            f"{counted(counts.events, 'event')}{sampled} of {counted(counts.active_users, 'user')} on"
            f" {counted(counts.items, 'item')}, {counted(len(self.manifest.shards), 'shard')}",
            f"targets: {counts.train:,} train, {counts.valid:,} valid, {counts.test:,} test",
            f"data fingerprint {self.manifest.data_fingerprint[:16]}",
        ]
        if counts.negatives_avoid:
            lines.append(f"negatives of a user avoid {_AVOIDED[counts.negatives_avoid]}")
        if counts.behaviours:
            alone = counts.unmatched_behaviours
            example = f", e.g. row {counts.first_unmatched} of them" if counts.first_unmatched is not None else ""
            none = f"; {alone:,} ({alone / counts.behaviours:.1%}) match none{example}" if alone else ""
            matched = f"{counts.behaviours - alone:,} of {counted(counts.behaviours, 'behaviour')}"
            lines.append(f"{matched} matched to an impression{none}")
        lines += [f"oracle AUC of {task}: {auc:.4f}" for task, auc in self.manifest.oracle.items()]
        return lines + [f"warning: {w}" for w in self.warnings]


def prepare(config: PrepareConfig, progress: Progress) -> PrepareResult:
    """Write the dataset of ``config``, or append to it; safe to run again (what is done is left alone).

    Raises:
        ConfigError: input missing or malformed, or the folder holds something else.
    """
    spec = BuildSpec(**{name: getattr(config, name) for name in BuildSpec.model_fields})
    write = append if config.append else build
    before = held_manifest(spec.path) if config.append else None
    done = None if config.append else complete(spec)
    if done is not None:
        manifest, written = done, False  # no cluster is started for nothing
    elif config.engine == "local":
        manifest, written = write(spec, run_here, progress)
    else:
        with ensure_cluster(config.cluster) as cluster:
            check_capacity(cluster, 0, "cluster.logical_cpus")
            run = partial(run_on_ray, stall_s=config.cluster.stall_s)
            manifest, written = write(spec, run, progress)
    found = [*warnings_of(manifest), *(_late_behaviours(before, manifest) if before is not None else [])]
    return PrepareResult(config.path, manifest, written, tuple(found))


def warnings_of(manifest: Manifest) -> list[str]:
    """What the user of this dataset should know before trusting a number."""
    counts, schema = manifest.counts, manifest.dataset_schema
    found = []
    if counts.orphan_items:
        many = 3 * counts.orphan_items > counts.items  # and the table holds ids that nobody met
        hint = " (does source.items_key name the column that holds these ids?)" if many else ""
        what = "items of the interactions are not in the items table: no text, no attributes"
        found.append(f"{counts.orphan_items:,} {what}{hint}")
    if counts.orphan_users and schema.user_features:
        found.append(f"{counts.orphan_users:,} users of the interactions are not in the users table: no attributes")
    for name, number in (("valid", counts.valid), ("test", counts.test), ("train", counts.train)):
        if not number:
            found.append(f"the split leaves no {name} target")
    if item_columns_needed(schema):
        names = ", ".join(item_columns_needed(schema))
        found.append(
            f"{names}: serving computes the clock and user columns itself, but must be told these in `context`"
        )
    if schema.sampled_negatives:
        found.append(sampled_warning(schema))
    return found


def _late_behaviours(before: Manifest, now: Manifest) -> list[str]:
    """Behaviours of an append that found none of its impressions: labels of old impressions stay as they are."""
    lost = now.counts.unmatched_behaviours - before.counts.unmatched_behaviours
    if not lost:
        return []
    told = counted(now.counts.behaviours - before.counts.behaviours, "appended behaviour")
    what = f"{lost:,} of {told} match no appended impression; labels of impressions the dataset had before stay"
    return [f"{what} as they are: prepare the whole anew to join them, or append a day once its behaviours are known"]


_AVOIDED = {
    "known": "all items of the same or an earlier part (users hardly come back to an item)",
    "request": "the items of the same request only (users come back to items)",
}


def sampled_warning(schema: DatasetSchema) -> str:
    """What AUC means when the negatives were sampled."""
    how, beside = "uniform", " (popularity alone scores high)"
    if isinstance(schema.negative_sampling, PopularityNegatives):
        how, beside = "popular", ""
    return (
        f"clicks only: {schema.sampled_negatives} {how} items per event serve as negatives, so AUC tells a chosen item"
        f" from a random one{beside}, not from what was shown and passed over"
    )
