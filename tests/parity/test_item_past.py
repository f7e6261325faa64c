"""Items' pasts offline and online: what the models are given for a row of the log, in the shards and by a request."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rayrank.batch import Queries
from rayrank.bundle import Bundle, BundleParts, load_bundle, save_bundle
from rayrank.config import ConfigError, parse
from rayrank.features.derived import ItemPast
from rayrank.messages import RankRequest, RecommendRequest, id_of
from rayrank.models.build import build_ranker
from rayrank.models.spec import Inputs, RankerSpec, StudentSpec, TeacherSpec
from rayrank.pipeline.cost import measure_cost
from rayrank.ranking.bulk import Asked, RequestScorer, ShardScorer
from rayrank.ranking.flow import FlowSettings
from rayrank.ranking.graph import Bundles, RankingGraph
from rayrank.ranking.release import Release
from rayrank.schema import PARTS, past_features
from rayrank.sources.build import build, run_here
from rayrank.sources.collate import collate
from rayrank.sources.dataset import Dataset
from rayrank.sources.spec import BuildSpec

DAY, LAG, LATE, BEGIN = 86_400, 50_000, 7200, 1_700_000_000
ITEMS, NEW = 20, 4  # so many more come in the last third
SCHEMA = """
name: past
tasks:
  - {{kind: binary, name: click, column: click, available_after_s: {late}}}
  - {{kind: regression, name: stars, column: stars, low: 1, high: 5}}
item_features: [{{kind: numeric, name: price, column: price}}]
context_features:
  - {{kind: categorical, name: device, column: device}}
  - {{kind: categorical, name: hour, column: "@hour"}}
  - {{kind: numeric, name: gap, column: "@gap", log: true}}
  - {{kind: numeric, name: activity, column: "@events", log: true}}
  - {{kind: numeric, name: popularity, column: "@item_events", log: true}}
  - {{kind: numeric, name: liking, column: "@item_click"}}
  - {{kind: numeric, name: quality, column: "@item_stars", quantiles: 8}}
  - {{kind: categorical, name: bin, column: "@item_events"}}
split: {{kind: time, valid: 0.2, test: 0.2}}
history_lag_s: {lag}
"""
WEIGHTS = {"click": 1.0, "stars": 0.5}


@dataclass(frozen=True)
class World:
    log: list[dict[str, Any]]
    dataset: Dataset
    graph: RankingGraph

    def past(self) -> ItemPast:
        found = self.dataset.past()
        assert found is not None
        return found

    def with_past(self, past: ItemPast | None) -> RankingGraph:
        """The graph as it would be with another state."""
        bundles = self.graph.bundles
        assert bundles.student is not None
        assert bundles.teacher is not None
        return graph_of(replace(bundles.student, past=past), replace(bundles.teacher, past=past))


def events() -> list[dict[str, Any]]:
    rng, time, made = random.Random(4), BEGIN, []
    for k in range(300):
        time += rng.choice([0, 60, 3600, 12_000])
        item = rng.randrange(ITEMS + NEW if k > 200 else ITEMS)
        event: dict[str, Any] = {"user_id": f"u{rng.randrange(8)}", "item_id": f"i{item}", "timestamp": time}
        event |= {"click": float(rng.random() < 0.1 + item / 30), "device": rng.choice(["phone", "tv", None])}
        made.append(event | {"stars": None if k % 4 == 0 else float(rng.randint(1, 5))})
    return made


def prepared(folder: Path, log: list[dict[str, Any]], lag: int = LAG) -> Dataset:
    folder.mkdir()
    items = [{"item_id": f"i{i}", "price": i / 3} for i in range(ITEMS + NEW)]
    for name, rows in (("events", log), ("items", items)):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    (folder / "dataset.yaml").write_text(SCHEMA.format(lag=lag, late=LATE))
    source = {"kind": "tables", "dataset": f"{folder}/dataset.yaml", "interactions": f"{folder}/events.parquet"}
    source |= {"items": f"{folder}/items.parquet"}
    spec = parse(BuildSpec, {"source": source, "path": f"{folder}/out", "rows_per_shard": 120})
    build(spec, run_here, lambda _: None)
    return Dataset.open(spec.path, verify=True)


def saved(path: Path, dataset: Dataset, spec: RankerSpec) -> Bundle:
    """A random model whose every weight matters."""
    torch.manual_seed(3)
    model = build_ranker(spec, dataset.schema, dataset.sizes())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    manifest = dataset.manifest
    parts = BundleParts(
        schema=dataset.schema,
        features=manifest.features,
        catalogue=dataset.catalogue(),
        items=dataset.catalogue_table(),
        users=dataset.users_table(),
        past=dataset.past(),
        data_fingerprint=manifest.data_fingerprint,
        window=manifest.window,
    )
    save_bundle(path, model, parts)
    return load_bundle(path)


def graph_of(student: Bundle, teacher: Bundle) -> RankingGraph:
    release = Release(release_id="past", student=str(student.path), teacher=str(teacher.path), fusion=WEIGHTS)
    return RankingGraph(Bundles(student, teacher), release, FlowSettings(), None)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder, log = tmp_path_factory.mktemp("past"), events()
    dataset, inputs = prepared(folder / "data", log), Inputs(text=False)
    student = saved(folder / "student", dataset, StudentSpec(width=8, hidden=8, id_width=4, inputs=inputs))
    teacher = TeacherSpec(width=8, id_width=4, attention_heads=2, inputs=inputs)
    return World(log, dataset, graph_of(student, saved(folder / "teacher", dataset, teacher)))


@dataclass(frozen=True)
class Row:
    """A target of the shards, and the request that a client sends at its instant; nothing of items' pasts."""

    number: int
    offline: dict[str, float]
    request: RankRequest


def rows_of(world: World, more: tuple[str, ...] = ()) -> Iterator[Row]:
    tasks = [t.name for t in world.dataset.schema.event_tasks]
    ids = [None, *world.dataset.catalogue_table()["item_id"].to_pylist()]
    for place in world.dataset.groups():
        batch = collate(world.dataset.read_group(*place), world.dataset.schema)
        told = batch.events
        assert told.history_BT is not None
        for b, t in batch.part_BT.nonzero().tolist():
            visible = ((told.request_BT[b] < told.request_BT[b, t]) & told.history_BT[b]).nonzero()[:, 0].tolist()
            labels = [{task: float(told.labels_BT[task][b, e]) for task in tasks} for e in visible]
            history = [
                {"item_id": ids[int(told.item_BT[b, e])], "time": int(told.time_BT[b, e])}
                | {"labels": {task: value for task, value in said.items() if value == value}}
                for e, said in zip(visible, labels, strict=True)
            ]
            number, event = int(batch.row_BT[b, t]), world.log[int(batch.row_BT[b, t])]
            body = {"user_id": event["user_id"], "history": history, "time": event["timestamp"]}
            body |= {"candidates": [event["item_id"], *more], "context": {"device": event["device"]}}
            offline = {name: values[b, t].item() for name, values in batch.context.items()}
            yield Row(number, offline, RankRequest.model_validate(body))


@contextmanager
def spied(graph: RankingGraph) -> Iterator[Callable[[], Queries]]:
    """What the student was asked last."""
    assert graph.bundles.student is not None
    model, asked = graph.bundles.student.model, list[Queries]()
    score = model.score

    def spy(state: Any, queries: Queries, items_NW: torch.Tensor) -> dict[str, torch.Tensor]:
        asked.append(queries)
        return score(state, queries, items_NW)

    model.score = spy  # type: ignore[method-assign, assignment]
    try:
        yield lambda: asked[-1]
    finally:
        del model.score


def context_of(graph: RankingGraph, request: RankRequest) -> dict[str, list[float]]:
    """Feature -> what the student is given for each candidate."""
    with spied(graph) as asked:
        graph.respond(request)
        return {name: values[0].tolist() for name, values in asked().context.items()}


def unequal(world: World, graph: RankingGraph) -> dict[str, int]:
    """How many rows of the log a feature differs in, offline and online."""
    found: dict[str, int] = {}
    for row in rows_of(world):
        online = context_of(graph, row.request)
        assert online.keys() == row.offline.keys()
        for name, value in row.offline.items():
            found[name] = found.get(name, 0) + (online[name] != [value])
    return found


def by_hand(world: World, item: str, now: int, lag: int = LAG) -> tuple[float, float, float]:
    """Events, mean click and mean stars of an item in whole days before ``now``, from the raw log."""
    begin = now // DAY * DAY
    mine = [e for e in world.log if e["item_id"] == item]
    clicks = [e["click"] for e in mine if e["timestamp"] + LATE + lag < begin]
    stars = [e["stars"] for e in mine if e["stars"] is not None and e["timestamp"] + lag < begin]
    means = [float(np.mean(v)) if v else np.nan for v in (clicks, stars)]
    return float(sum(e["timestamp"] < begin for e in mine)), means[0], means[1]


def test_every_context_feature_of_every_row_is_equal_offline_and_online(world: World) -> None:
    found = unequal(world, world.graph)
    assert set(found) == {"device", "hour", "gap", "activity", "popularity", "liking", "quality", "bin"}
    assert not any(found.values()), found


def test_the_comparison_notices_a_state_without_the_lag_and_none(world: World, tmp_path: Path) -> None:
    hasty = unequal(world, world.with_past(prepared(tmp_path / "hasty", world.log, lag=0).past()))
    assert hasty["liking"] > 20
    assert hasty["quality"] > 20
    assert not hasty["popularity"], "an event is known at once"
    missing = unequal(world, world.with_past(None))
    assert all(missing[name] > 100 for name in ("popularity", "liking", "quality", "bin"))


def test_candidates_have_values_of_their_own_as_counted_in_the_log(world: World) -> None:
    others, scales = ("i3", "i7", f"i{ITEMS + 1}"), world.dataset.manifest.features.context.scales
    checked = 0
    for row in list(rows_of(world, more=others))[::17]:
        online = context_of(world.graph, row.request)
        for place, item in enumerate(map(id_of, row.request.candidates)):
            assert row.request.time is not None
            count, liking, _ = by_hand(world, str(item), row.request.time)
            scale = scales["popularity"]
            assert online["popularity"][place] == pytest.approx((np.log1p(count) - scale.mean) / scale.std, abs=1e-5)
            expected = 0.0 if np.isnan(liking) else (liking - scales["liking"].mean) / scales["liking"].std
            assert online["liking"][place] == pytest.approx(expected, abs=1e-5)
            checked += 1
    assert checked > 60


def test_batch_scores_of_shards_are_those_of_requests(world: World) -> None:
    requests, compared, graph = {row.number: row.request for row in rows_of(world)}, 0, world.graph
    asked = [Asked(part, "streaming", WEIGHTS) for part in PARTS]  # type: ignore[arg-type]
    for scorer in (ShardScorer(graph, ("student", "teacher"), one) for one in asked):
        for place in world.dataset.groups():
            for line in scorer.table(world.dataset.read_group(*place)).to_pylist():
                (online,) = graph.respond(requests[line["row"]].model_copy(update={"explain": True})).items
                for role in ("student", "teacher"):
                    assert online.stages[role] == pytest.approx(line[f"{role}_score"], abs=1e-5)
                compared += 1
    assert compared == len(world.log)


def test_batch_requests_are_answered_like_online_ones_and_nulls_are_not_given(world: World) -> None:
    row = list(rows_of(world, more=("i3",)))[-1]
    body = row.request.model_dump(mode="json", exclude_none=True)
    null = {**body, "context": {**body["context"], "@item_events": None, "@gap": None}}
    lines = RequestScorer(world.graph).table([body, null], 0, "here").to_pylist()
    expected = {item.item_id: item.score for item in world.graph.respond(row.request).items}
    for line in lines:
        assert line["score"] == expected[line["item_id"]]
    given = world.graph.respond(RankRequest.model_validate(null))
    assert {item.item_id: item.score for item in given.items} == expected


def test_what_a_client_gives_counts_for_all_candidates_and_the_rest_is_computed(world: World) -> None:
    row = list(rows_of(world, more=("i3",)))[-1]
    computed = context_of(world.graph, row.request)
    context = {**row.request.context, "@item_click": 0.25}
    online = context_of(world.graph, row.request.model_copy(update={"context": context}))
    scale = world.dataset.manifest.features.context.scales["liking"]
    assert online["liking"] == pytest.approx([(0.25 - scale.mean) / scale.std] * 2)
    assert {k: v for k, v in online.items() if k != "liking"} == {k: v for k, v in computed.items() if k != "liking"}


def test_after_the_log_all_of_it_counts(world: World) -> None:
    end = max(e["timestamp"] for e in world.log)
    asked = RankRequest.model_validate({"candidates": ["i1", "i3", "i7"], "time": end + 5 * DAY})
    soon, scale = context_of(world.graph, asked), world.dataset.manifest.features.context.scales["popularity"]
    counts = [sum(e["item_id"] == item for e in world.log) for item in ("i1", "i3", "i7")]
    assert soon["popularity"] == pytest.approx([(np.log1p(n) - scale.mean) / scale.std for n in counts], rel=1e-5)
    late = context_of(world.graph, asked.model_copy(update={"time": end + 4000 * DAY}))
    assert [late[f.name] for f in past_features(world.dataset.schema)] == [
        soon[f.name] for f in past_features(world.dataset.schema)
    ]


def test_unknown_described_and_not_yet_seen_items_have_no_events_and_no_mean(world: World) -> None:
    cold = {"item_id": "fresh", "attributes": {"price": 2.0}}
    asked = RankRequest.model_validate({"candidates": ["nobody", cold, f"i{ITEMS}"], "time": BEGIN + DAY})
    online, scale = context_of(world.graph, asked), world.dataset.manifest.features.context.scales["popularity"]
    assert online["popularity"] == pytest.approx([-scale.mean / scale.std] * 3)
    assert online["liking"] == online["quality"] == [0.0] * 3


def test_recommended_items_are_looked_up_too(world: World) -> None:
    time = max(e["timestamp"] for e in world.log)
    with spied(world.graph) as asked:
        world.graph.respond(RecommendRequest(time=time, k=5))
        queries = asked()
    past, item = world.past(), queries.item_BQ[0].numpy()
    scale = world.dataset.manifest.features.context.scales["popularity"]
    expected = (np.log1p(past.value("@item_events", item, np.full(len(item), time))) - scale.mean) / scale.std
    np.testing.assert_allclose(queries.context["popularity"][0].numpy(), expected, rtol=1e-5)
    assert len(set(expected.tolist())) > 3


def test_the_bundle_holds_the_table_of_the_dataset(world: World) -> None:
    kept, past = world.graph.bundles.first.past, world.past()
    assert kept is not None
    np.testing.assert_array_equal(kept.key, past.key)
    assert kept.sums.keys() == past.sums.keys()
    for name, values in past.sums.items():
        np.testing.assert_array_equal(kept.sums[name], values)
    assert kept.sums["events"].dtype == np.int32, "whole numbers take half the room"
    again = load_bundle(world.graph.bundles.first.path, verify=False)
    assert again.past is not None


def test_a_damaged_table_is_refused_and_an_older_bundle_says_what_it_lacks(world: World, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source, copy = world.graph.bundles.first.path, tmp_path / "copy"
    copy.mkdir()
    for file in source.iterdir():
        copy.joinpath(file.name).write_bytes(file.read_bytes())
    tensors = load_file(source / "past.safetensors")
    save_file({n: v for n, v in tensors.items() if n != "sum.count_click"}, copy / "past.safetensors")
    with pytest.raises(ConfigError, match=r"past\.safetensors.*lacks sum\.count_click"):
        load_bundle(copy, verify=False)
    older = world.with_past(None).respond(RankRequest.model_validate({"candidates": ["i1"], "time": BEGIN}))
    assert any("holds no item pasts: @item_click, @item_events, @item_stars" in w for w in older.warnings)
    assert not any("item pasts" in w for w in world.graph.respond(next(rows_of(world)).request).warnings)


def test_the_cost_of_a_request_includes_looking_its_candidates_up(world: World) -> None:
    student = world.graph.bundles.student
    assert student is not None
    with spied(world.graph) as asked:
        measure_cost(student, world.dataset, candidates=12, requests=1)
        assert len(set(asked().context["popularity"][0].tolist())) > 1, "each its own, not the shards' of one event"
