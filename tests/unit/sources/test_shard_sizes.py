"""Shards of even size: users are dealt by a hash, so one with a hundred times the events of the others shows little."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rayrank.config import parse
from rayrank.pipeline.validate import ValidateConfig, validate
from rayrank.schema import TEST, TRAIN
from rayrank.sources.build import build, run_here
from rayrank.sources.dataset import Dataset
from rayrank.sources.relations import SKEW
from rayrank.sources.spec import BuildSpec

USERS, EACH, START = 2000, 10, 1_700_000_000
HEAVY = 100 * EACH
ALL = USERS * EACH + HEAVY


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two thousand users with ten events each, and one with a thousand."""
    folder = tmp_path_factory.mktemp("skewed")
    people = np.random.default_rng(5).permutation(np.append(np.repeat(np.arange(USERS), EACH), [USERS] * HEAVY))
    lines = [f"u{u},i{k * k % 97},{START + 60 * k},{k % 2}" for k, u in enumerate(people.tolist())]
    (folder / "events.csv").write_text("\n".join(["user_id,item_id,timestamp,click", *lines]) + "\n")
    (folder / "dataset.yaml").write_text("name: x\ntasks: [{kind: binary, name: click, column: click}]\n")
    return {"kind": "tables", "dataset": f"{folder}/dataset.yaml", "interactions": f"{folder}/events.csv"}


def sizes(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Logged events of each shard, and events as they lie there: the history before a later chunk is repeated."""
    groups = [s.row_groups for s in dataset.manifest.shards]
    logged = [sum(g.train + g.valid + g.test for g in shard) for shard in groups]
    return np.array(logged), np.array([sum(g.events for g in shard) for shard in groups])


def spec_of(source: dict[str, str], path: Path, rows_per_shard: int) -> BuildSpec:
    return parse(BuildSpec, {"source": source, "path": str(path), "rows_per_shard": rows_per_shard})


def test_one_heavy_user_makes_no_heavy_shard(source: dict[str, str], tmp_path: Path) -> None:
    spec = spec_of(source, tmp_path / "out", 3000)
    build(spec, run_here, lambda _: None)
    logged, stored = sizes(Dataset.open(spec.path))
    assert (len(logged), logged.sum()) == (7, ALL)
    assert logged.max() <= 1.5 * logged.mean()
    assert logged.min() >= 0.75 * logged.mean()
    assert stored.max() <= 2.0 * stored.mean()
    result = validate(parse(ValidateConfig, spec.model_dump(mode="json")), lambda _: None)
    assert not [f for f in result.findings if "times the mean" in f.rule]


def test_a_user_is_never_split_and_one_larger_than_a_shard_is_told(source: dict[str, str], tmp_path: Path) -> None:
    """A shard holds ``rows_per_shard`` events or so, and its largest user on top."""
    spec = spec_of(source, tmp_path / "out", 250)
    before = validate(parse(ValidateConfig, spec.model_dump(mode="json")), lambda _: None)
    build(spec, run_here, lambda _: None)
    dataset = Dataset.open(spec.path)
    logged, stored = sizes(dataset)
    assert logged.max() <= HEAVY + 2 * 250
    assert np.sort(logged)[-2] <= 2 * logged.mean()
    heavy = dataset.users_table()["user_id"].to_pylist().index(f"u{USERS}") + 1
    own: dict[int, int] = {}
    for shard, group in dataset.groups():
        table = dataset.read_group(shard, group, ["user", "part"])
        for user, part in zip(table["user"].to_pylist(), table["part"].to_pylist(), strict=True):
            if user == heavy:
                own[shard] = own.get(shard, 0) + sum(TRAIN <= p <= TEST for p in part)
    assert own == {int(np.argmax(logged)): HEAVY}, "history and targets of a user lie in one shard"
    (foretold,) = [f for f in before.findings if f.where == "shards"]
    assert (foretold.severity, foretold.value, foretold.count) == ("warning", np.argmax(logged), logged.max())
    after = validate(parse(ValidateConfig, spec.model_dump(mode="json")), lambda _: None)
    (found,) = [f for f in after.findings if f.where.startswith("dataset.shards")]
    assert (found.value, found.count) == (np.argmax(stored), stored.max())
    assert stored.max() > SKEW * stored.mean()
