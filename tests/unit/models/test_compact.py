"""Encoders with units taken out: equal to the same network with those units silenced, and rebuilt from their config."""

from __future__ import annotations

import copy

import torch

from rayrank.models.compact import heads_of, keep_heads, keep_layers, keep_neurons, neurons_of
from rayrank.models.encoder import TextEncoder, build_encoder
from rayrank.models.packed import layers_of

CONFIG = {
    "model_type": "bert", "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 32, "max_position_embeddings": 16, "initializer_range": 0.3,
}  # fmt: skip
LENGTHS = [3, 0, 7, 12, 5]


def made() -> TextEncoder:
    torch.manual_seed(0)
    return build_encoder(CONFIG).requires_grad_(False)


def encoded(encoder: TextEncoder) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    offsets = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()])
    tokens = torch.randint(4, 30, (sum(LENGTHS),), dtype=torch.int32, generator=generator)
    return encoder.encode(tokens, offsets, torch.arange(len(LENGTHS)))


def again(encoder: TextEncoder) -> TextEncoder:
    """Rebuilt from its config, with its weights loaded strictly."""
    rebuilt = build_encoder(encoder.config())
    rebuilt.load_state_dict(encoder.state_dict(), strict=True)
    return rebuilt


def test_heads_taken_out_are_heads_whose_output_is_zero() -> None:
    encoder, silenced = made(), made()
    kept = [torch.tensor([0, 2]), torch.tensor([1, 3]), torch.tensor([2, 3])]
    for layer, heads in zip(layers_of(silenced.network), kept, strict=True):
        gone = [h for h in range(4) if h not in heads]
        layer.attention.output.dense.weight.view(16, 4, 4)[:, gone] = 0.0
    before = sum(p.numel() for p in encoder.parameters())
    keep_heads(encoder.network, kept)
    assert heads_of(encoder.network) == 2
    assert before - sum(p.numel() for p in encoder.parameters()) == 3 * (4 * 16 * 8 + 3 * 8)
    torch.testing.assert_close(encoded(encoder), encoded(silenced))
    torch.testing.assert_close(encoded(again(encoder)), encoded(encoder), rtol=0, atol=0)


def test_neurons_taken_out_are_neurons_whose_output_is_zero() -> None:
    encoder, silenced = made(), made()
    kept = [torch.arange(0, 32, 4), torch.arange(8), torch.arange(20, 28)]
    for layer, neurons in zip(layers_of(silenced.network), kept, strict=True):
        gone = [n for n in range(32) if n not in neurons]
        layer.output.dense.weight[:, gone] = 0.0
    keep_neurons(encoder.network, kept)
    assert neurons_of(encoder.network) == 8
    torch.testing.assert_close(encoded(encoder), encoded(silenced))
    torch.testing.assert_close(encoded(again(encoder)), encoded(encoder), rtol=0, atol=0)


def test_layers_keep_their_order() -> None:
    encoder, whole = made(), made()
    keep_layers(encoder.network, [0, 2])
    first, last = (copy.deepcopy(layers_of(whole.network)[i]).state_dict() for i in (0, 2))
    for found, wanted in zip(layers_of(encoder.network), (first, last), strict=True):
        assert all(torch.equal(found.state_dict()[name], value) for name, value in wanted.items())
    assert encoder.config()["num_hidden_layers"] == 2
    torch.testing.assert_close(encoded(again(encoder)), encoded(encoder), rtol=0, atol=0)
