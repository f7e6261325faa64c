from __future__ import annotations

import os
from pathlib import Path

import pytest

from rayrank.config import ConfigError
from rayrank.sources import storage
from rayrank.sources.build import build, run_here
from rayrank.sources.dataset import Dataset
from rayrank.sources.spec import BuildSpec


def test_files_of_a_folder_a_glob_or_one(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "c.txt", "deep/d.CSV", ".hidden.csv", "_tmp/e.csv"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")

    def names(path: str) -> list[str]:
        return [os.path.relpath(p, tmp_path) for p in storage.list_files(path, (".csv",))]

    assert names(str(tmp_path)) == ["a.csv", "b.csv", "deep/d.CSV"]
    assert names(f"{tmp_path}/*.csv") == ["a.csv", "b.csv"]
    assert names(f"{tmp_path}/a.csv") == ["a.csv"]
    assert storage.list_files(f"file://{tmp_path}/a.csv") == [f"file://{tmp_path}/a.csv"]
    assert storage.list_files(f"file://{tmp_path}", (".txt",)) == [f"file://{tmp_path}/c.txt"]
    for path in (f"{tmp_path}/*.json", f"{tmp_path}/none", f"{tmp_path}/_tmp/*.json"):
        with pytest.raises(ConfigError, match="no file, folder or glob"):
            names(path)


def test_a_star_stays_within_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ["log/1.csv", "log/2.csv", "log/old/1.csv", "log/old/a/1.csv", "log/.hidden/3.csv", "log/1.txt"]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")

    def names(glob: str) -> list[str]:
        return [os.path.relpath(p, tmp_path) for p in storage.list_files(f"{tmp_path}/{glob}", (".csv",))]

    assert names("log/*.csv") == ["log/1.csv", "log/2.csv"], "as in a shell: not those of log/old"
    assert names("log/?.csv") == ["log/1.csv", "log/2.csv"]
    assert names("log/[1-9].csv") == ["log/1.csv", "log/2.csv"]
    assert names("*/*/*.csv") == ["log/old/1.csv"]
    assert names("l*/old/1.csv") == ["log/old/1.csv"]
    assert names("log/**/1.csv") == ["log/1.csv", "log/old/1.csv", "log/old/a/1.csv"]
    assert names("log/**") == ["log/1.csv", "log/2.csv", "log/old/1.csv", "log/old/a/1.csv"]
    assert names("**/a/*.csv") == ["log/old/a/1.csv"]
    assert names("log") == ["log/1.csv", "log/2.csv", "log/old/1.csv", "log/old/a/1.csv"], "a folder is read whole"
    with pytest.raises(ConfigError, match=r"stays within one name, '\*\*' stands for any folders"):
        names("*.csv")
    monkeypatch.chdir(tmp_path / "log")
    assert [os.path.normpath(p) for p in storage.list_files("*.csv")] == ["1.csv", "2.csv"]
    assert storage.list_files("./*.csv") == ["./1.csv", "./2.csv"]
    url = f"file://{tmp_path}/log"
    assert storage.list_files(f"{url}/*.csv") == [f"{url}/1.csv", f"{url}/2.csv"]


def test_writes_are_whole_or_absent(tmp_path: Path) -> None:
    path = str(tmp_path / "new" / "file.json")
    storage.write_json(path, {"b": 1, "a": "é"})
    assert Path(path).read_text(encoding="utf-8") == '{\n "a": "é",\n "b": 1\n}\n'
    storage.write_bytes(path, b"second")
    assert storage.read_bytes(path) == b"second"
    assert os.listdir(tmp_path / "new") == ["file.json"]
    storage.remove(path)
    storage.remove(path)
    assert not storage.exists(path)


def test_a_signature_follows_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    before = storage.signature([str(path)])
    assert storage.signature([str(path)]) == before
    path.write_text("more")
    assert storage.signature([str(path)]) != before


def test_unknown_schemes_and_unreadable_files_are_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="filesystem"):
        storage.exists("nope://bucket/key")
    with pytest.raises(ConfigError, match="must be readable"):
        storage.read_bytes(str(tmp_path / "none"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="must be writable"):
        storage.make_folder(str(tmp_path / "file" / "below"))


def test_settings_and_secrets_do_not_belong_into_a_url() -> None:
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL") as caught:
        storage.exists("s3://bucket/data?endpoint_override=localhost%3A9000&access_key=hidden")
    assert "hidden" not in str(caught.value)
    assert not storage.found("file:///nowhere/part-?.csv"), "a glob is no query"


def test_a_dataset_may_live_at_a_url(tmp_path: Path) -> None:
    source = {"kind": "synthetic", "num_users": 60, "num_rows": 1000, "num_items": 60}
    spec = BuildSpec(source=source, path=f"file://{tmp_path}/out")  # type: ignore[arg-type]
    manifest, _ = build(spec, run_here, lambda _: None)
    dataset = Dataset.open(spec.path, verify=True)
    assert dataset.manifest == manifest
    assert dataset.read_group(0, 0, ["user", "item"]).column_names == ["user", "item"]
    assert dataset.catalogue_table().num_rows == 60
