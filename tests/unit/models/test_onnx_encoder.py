"""The encoder's graph on ONNX Runtime: the vectors of torch, pruned networks included; what is missing is named."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.nn import functional

from rayrank.compression.onnx_graph import OnnxInt8, encoder_graph
from rayrank.compression.texts import Texts
from rayrank.config import ConfigError
from rayrank.models.compact import keep_heads
from rayrank.models.encoder import TextEncoder, build_encoder
from rayrank.models.onnx_encoder import OnnxEncoder

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

CONFIG = {
    "model_type": "bert", "vocab_size": 30, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 16, "initializer_range": 0.1,
}  # fmt: skip
ROBERTA = {**CONFIG, "model_type": "roberta", "pad_token_id": 1, "max_position_embeddings": 24, "type_vocab_size": 1}
LENGTHS = [3, 0, 7, 12, 5, 7, 1]


def made(config: dict) -> tuple[TextEncoder, Texts]:
    torch.manual_seed(0)
    encoder = build_encoder(config).requires_grad_(False)
    keep_heads(encoder.network, [torch.tensor([0, 3]), torch.tensor([1, 2])])
    offsets = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()])
    tokens = torch.randint(4, 30, (sum(LENGTHS),), dtype=torch.int32)
    rows = torch.arange(len(LENGTHS))
    return encoder, Texts(tokens, offsets, encoder.encode(tokens, offsets, rows), torch.tensor([0, 2, 3, 4, 5]), rows)


@pytest.mark.parametrize(
    ("config", "int8", "likeness"),
    [(CONFIG, "none", None), (ROBERTA, "none", None), (CONFIG, "dynamic", 0.999), (CONFIG, "static", 0.99)],
    ids=["bert", "roberta", "int8 dynamic", "int8 static"],
)
def test_vectors_are_those_of_torch(config: dict, int8: OnnxInt8, likeness: float | None) -> None:
    encoder, texts = made(config)
    graph = OnnxEncoder(encoder_graph(encoder, int8, texts, 5), encoder.config())
    found = texts.encode(graph, texts.held_out)
    assert torch.equal(found[1], torch.zeros(32))
    if likeness is None:
        torch.testing.assert_close(found, texts.vectors_NW, rtol=1e-4, atol=1e-5)
    else:
        filled = [0, 2, 3, 4, 5, 6]
        assert functional.cosine_similarity(found, texts.vectors_NW)[filled].min() > likeness
        assert not torch.allclose(found, texts.vectors_NW, atol=1e-6)
    assert not list(graph.parameters())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"onnxruntime must be installed.*rayrank\[onnx\]"):
        OnnxEncoder(b"", CONFIG)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    encoder, texts = made(CONFIG)
    with pytest.raises(ConfigError, match=r"onnxscript must be installed.*rayrank\[onnx\]"):
        encoder_graph(encoder, "none", texts, 5)


def test_other_shapes_than_berts_are_refused() -> None:
    _, texts = made(CONFIG)
    distil = {"model_type": "distilbert", "vocab_size": 30, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}
    encoder = build_encoder({**distil, "max_position_embeddings": 16, "hidden_size": 16})
    with pytest.raises(ConfigError, match="BERT-shaped"):
        encoder_graph(encoder, "none", texts, 5)
