"""User histories: chunks merged, events counted once, the file rebuilt when the data changes."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from rayrank.config import ConfigError
from rayrank.messages import RecommendRequest
from rayrank.on_ray.graph_spec import open_store
from rayrank.ranking import store as store_module
from rayrank.ranking.flow import FlowSettings
from rayrank.ranking.graph import RankingGraph
from rayrank.ranking.private import private_folder
from rayrank.ranking.release import load_release
from rayrank.ranking.store import UserStore, build_store
from rayrank.sources.dataset import Dataset
from tests.tiny_release import START, TinyWorld

DAY = 86_400


def test_overlapping_chunks_become_one_history(store: UserStore) -> None:
    found = store.history("u3")
    assert found is not None
    assert found.item.tolist() == [16, 17, 18, 19, 20]
    assert found.request.tolist() == [0, 0, 1, 1, 2]
    assert found.time.tolist() == [START, START, START + DAY, START + DAY, START + 2 * DAY]
    assert found.labels["like"].tolist() == [1, 0, 1, 0, 1]
    assert found.labels["rating"].tolist() == [5, 2, 5, 2, 5]


def test_users_without_events_and_strangers_have_no_history(store: UserStore) -> None:
    assert store.history("u6") is None
    assert store.history("nobody'; DROP TABLE histories") is None
    assert store.user_ids(2) == ["u1", "u2"]
    assert (store.users, store.latest) == (5, START + 3 * DAY)


def test_the_latest_events(store: UserStore) -> None:
    found = store.history("u3")
    assert found is not None
    assert found.last(2).item.tolist() == [19, 20]
    assert len(found.last(99)) == 5


def test_events_that_no_history_may_show_are_left_out(world: TinyWorld, tmp_path: Path) -> None:
    class Hidden:
        """The dataset, with every second event a sampled negative."""

        def __init__(self, dataset: Dataset) -> None:
            self.schema, self.manifest = dataset.schema, dataset.manifest
            self.users_table, self.groups, self._dataset = dataset.users_table, dataset.groups, dataset

        def read_group(self, shard: int, group: int, columns: list[str] | None = None) -> object:
            import pyarrow as pa

            table = self._dataset.read_group(shard, group, columns=columns)
            rows = [[r % 2 == 0 for r in row] for row in table.column("row").to_pylist()]
            place = table.column_names.index("history")
            return table.set_column(place, "history", pa.array(rows, pa.list_(pa.bool_())))

    hidden = Hidden(Dataset.open(str(world.dataset)))
    build_store(tmp_path / "h.sqlite", hidden)  # type: ignore[arg-type]
    whole, found = UserStore.open(tmp_path / "w.sqlite", hidden._dataset), UserStore(tmp_path / "h.sqlite")
    for user in ("u1", "u5"):
        everything, rest = whole.history(user), found.history(user)
        assert everything is not None
        assert rest is not None
        assert 0 < len(rest) < len(everything)
        assert np.isin(rest.item, everything.item).all()


def test_an_unchanged_dataset_is_not_read_again_and_a_changed_one_is(
    world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, path, built = Dataset.open(str(world.dataset)), tmp_path / "s.sqlite", []
    real = store_module.build_store
    monkeypatch.setattr(store_module, "build_store", lambda *a: (built.append(1), real(*a)))
    path.write_bytes(b"no database")
    UserStore.open(path, dataset)
    UserStore.open(path, dataset)
    assert len(built) == 1
    other = dataset.manifest.model_copy(update={"data_fingerprint": "e" * 64})
    UserStore.open(path, dataclasses.replace(dataset, manifest=other))
    assert len(built) == 2


def test_a_damaged_cache_is_found_at_the_start_and_made_anew(
    world: TinyWorld, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset, path = Dataset.open(str(world.dataset)), tmp_path / "s.sqlite"
    UserStore.open(path, dataset).close()
    whole, page = path.read_bytes(), 4096
    damaged = [whole[:at] + b"\xff" * page + whole[at + page :] for at in range(0, len(whole), page)]
    for body in (*damaged, whole[:-page], whole[: len(whole) // 2], whole[:100], b""):
        path.write_bytes(body)
        found = UserStore.open(path, dataset)
        assert [len(found.history(user) or ()) for user in found.user_ids()] == [3, 4, 5, 6, 7]
        found.close()
    assert caplog.text.count("is damaged and made anew") > 0


def test_a_crash_leaves_neither_half_a_store_nor_its_scraps(
    world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(store_module, "_merged", crash)
    with pytest.raises(MemoryError):
        build_store(tmp_path / "s.sqlite", Dataset.open(str(world.dataset)))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_explained(world: TinyWorld, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="must be writable"):
        build_store(tmp_path / "file" / "s.sqlite", Dataset.open(str(world.dataset)))


def test_the_default_place_is_private_or_refused(
    world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    opened = open_store(load_release(world.releases), None)
    assert opened is not None
    place = Path(opened.path).parent
    assert place == private_folder("histories") == tmp_path / f"rayrank-{os.getuid()}"
    assert place.stat().st_mode & 0o777 == 0o700
    place.chmod(0o755)
    with pytest.raises(ConfigError, match=r"open to others \(mode 755\).*histories=PATH"):
        private_folder("histories")
    place.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").chmod(0o700)
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="belongs to somebody else"):
        private_folder("histories")


def test_a_damaged_cache_costs_the_histories_and_says_so(
    world: TinyWorld, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "h.sqlite"
    graph = RankingGraph.open(
        load_release(world.releases), FlowSettings(pool=20), UserStore.open(path, Dataset.open(str(world.dataset)))
    )
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    for _ in range(2):
        found = graph.respond(RecommendRequest(user_id="u3", k=2), START)
        assert (found.answered_by, len(found.items)) == ("teacher", 2)
        assert "user histories: damaged" in (found.degraded or "")
        assert "without what the dataset knows" in (found.degraded or "")
    assert caplog.text.count("remove the file") == 1
    assert graph.user.examples(3) == []
