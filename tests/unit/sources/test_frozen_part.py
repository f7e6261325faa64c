"""What lies below the trained layers, in a file that several processes fill and all map."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rayrank.config import ConfigError
from rayrank.models.tuning import Top, tune
from rayrank.sources.encoders import FrozenPart, TinyEncoder, resolve_encoder, tokenise

TEXTS = ["", "a red lamp", "a blue kettle of steel", "lamp", "a chair"]


def test_the_file_holds_what_memory_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = resolve_encoder(TinyEncoder(layers=2), TEXTS)
    assert loaded is not None
    tune(loaded.network, Top())
    tokens = tokenise(TEXTS, loaded.tokenizer_json, loaded.max_tokens)
    every, wanted = torch.arange(len(TEXTS)), torch.zeros(len(tokens[0]), loaded.network.width)
    loaded.network.fill_frozen_part(*tokens, every, wanted)
    file = FrozenPart.of(tmp_path / "cache", loaded, tokens)
    for share in (every[0::2], every[1::2]):  # two processes of a machine
        assert not file.exists()
        loaded.network.fill_frozen_part(*tokens, share, file.open())
    file.keep()
    file.keep()  # the second process comes after the first
    assert file.exists()
    torch.testing.assert_close(file.read(), wanted, rtol=1e-5, atol=1e-6)
    other = tokenise([*TEXTS, "more"], loaded.tokenizer_json, loaded.max_tokens)
    assert not FrozenPart.of(tmp_path / "cache", loaded, other).exists(), "other texts are another file"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(ConfigError, match="the disk must have room"):
        FrozenPart.of(tmp_path / "cache", loaded, other).open()
