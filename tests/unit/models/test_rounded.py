"""Rounded encoders: close to the original, the same after loading, and of a text alone or among others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrank.models.encoder import TextEncoder, build_encoder
from rayrank.models.rounded import Int8Linear, Rounding, input_ranges, round_weights

CONFIG = {
    "model_type": "bert", "vocab_size": 30, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 16, "initializer_range": 0.1,
}  # fmt: skip
DISTIL = {
    "model_type": "distilbert", "vocab_size": 30, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64,
    "max_position_embeddings": 16, "hidden_size": 32,
}  # fmt: skip
LENGTHS = [3, 0, 7, 12, 5]
ROUNDINGS: tuple[Rounding, ...] = ("bfloat16", "int8_dynamic", "int8_static")


def made(config: dict = CONFIG) -> TextEncoder:
    torch.manual_seed(0)
    return build_encoder(config).requires_grad_(False)


def encoded(encoder: TextEncoder, rows: Tensor | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    offsets = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()])
    tokens = torch.randint(4, 30, (sum(LENGTHS),), dtype=torch.int32, generator=generator)
    with torch.inference_mode():
        return encoder.encode(tokens, offsets, torch.arange(len(LENGTHS)) if rows is None else rows)


def rounded(rounding: Rounding, config: dict = CONFIG) -> TextEncoder:
    encoder = made(config)
    with input_ranges(encoder.network) as ranges:
        encoded(encoder)
    round_weights(encoder.network, rounding, ranges)
    return encoder


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("config", [CONFIG, DISTIL], ids=lambda c: c["model_type"])
def test_vectors_stay_close_and_are_rebuilt(rounding: Rounding, config: dict) -> None:
    encoder, wanted = rounded(rounding, config), encoded(made(config))
    found = encoded(encoder)
    assert not torch.equal(found, wanted)
    likeness = functional.cosine_similarity(found, wanted)[[0, 2, 3, 4]]
    assert likeness.min() > 0.999
    assert torch.equal(found[1], torch.zeros(32))
    rebuilt = build_encoder(encoder.config())
    rebuilt.load_state_dict(encoder.state_dict(), strict=True, assign=True)
    assert torch.equal(encoded(rebuilt), found)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_vector_does_not_depend_on_the_texts_beside_it(rounding: Rounding) -> None:
    encoder = rounded(rounding)
    alone, among = encoded(encoder, torch.tensor([0])), encoded(encoder)[:1]
    # bfloat16 sums may be taken in another order for another number of rows
    torch.testing.assert_close(alone, among, rtol=0, atol=5e-3 if rounding == "bfloat16" else 1e-5)


def test_int8_products_are_those_of_the_rounded_numbers() -> None:
    torch.manual_seed(0)
    dense, x = nn.Linear(16, 8), torch.randn(5, 16)
    weight_scale = dense.weight.abs().amax(1, keepdim=True) / 127
    weight = (dense.weight / weight_scale).round() * weight_scale
    input_scale = x.abs().amax(1, keepdim=True) / 127
    by_token = (x / input_scale).round() * input_scale
    with torch.inference_mode():
        wanted = functional.linear(by_token, weight, dense.bias)
        torch.testing.assert_close(Int8Linear.of(dense, None)(x), wanted, rtol=1e-5, atol=1e-5)
        step = (x.max() - x.min()) / 255
        zero = (-x.min() / step).round()
        by_range = ((x / step + zero + 0.5).floor().clamp(0, 255) - zero) * step
        wanted = functional.linear(by_range, weight, dense.bias)
        found = Int8Linear.of(dense, (float(x.min()), float(x.max())))
        torch.testing.assert_close(found(x), wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found(x, gelu=True), functional.gelu(wanted), rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(found(x.view(1, 5, 16))[0], found(x))


def test_without_onednn_the_numbers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    dense, x = nn.Linear(16, 8), torch.randn(5, 16)
    for range_ in (None, (-3.0, 3.0)):
        layer = Int8Linear.of(dense, range_)
        with torch.inference_mode():
            wanted = layer(x, gelu=True)
            with monkeypatch.context() as patch:
                patch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
                torch.testing.assert_close(layer(x, gelu=True), wanted, rtol=1e-4, atol=1e-4)


def test_inputs_beyond_the_range_are_cut_to_it() -> None:
    dense = nn.Linear(4, 2)
    found = Int8Linear.of(dense, (-1.0, 1.0))
    with torch.inference_mode():
        torch.testing.assert_close(found(torch.full((1, 4), 9.0)), found(torch.full((1, 4), 1.0)))
