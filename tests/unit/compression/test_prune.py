"""Which units go: importance against a measured reference, the layers that matter least, and what recovery mends."""

from __future__ import annotations

import copy

import pytest
import torch

from rayrank.compression.prune import importance, prune
from rayrank.compression.spec import Prune, Recovery
from rayrank.compression.texts import Texts
from rayrank.config import ConfigError
from rayrank.models.encoder import TextEncoder, build_encoder
from rayrank.models.packed import layers_of
from rayrank.models.tuning import add_adapters

CONFIG = {
    "model_type": "bert", "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 24, "max_position_embeddings": 16, "initializer_range": 0.2,
}  # fmt: skip
ROWS = 60


def quiet(_line: str) -> None:
    """A progress listener that says nothing."""


def made() -> tuple[TextEncoder, Texts]:
    torch.manual_seed(0)
    encoder = build_encoder(CONFIG).requires_grad_(False)
    offsets = torch.arange(0, 6 * (ROWS + 1), 6)
    tokens = torch.randint(4, 40, (6 * ROWS,), dtype=torch.int32)
    rows = torch.arange(ROWS)
    return encoder, Texts(tokens, offsets, encoder.encode(tokens, offsets, rows), rows[6:], rows[:6])


def scale_neuron(encoder: TextEncoder, layer: int, neuron: int, factor: float) -> None:
    layers_of(encoder.network)[layer].output.dense.weight[:, neuron] *= factor


def scale_head(encoder: TextEncoder, layer: int, head: int, factor: float) -> None:
    layers_of(encoder.network)[layer].attention.output.dense.weight.view(16, 4, 4)[:, head] *= factor


def test_importance_is_how_far_the_vectors_move_for_a_small_change_of_a_unit() -> None:
    encoder, texts = made()
    rows, step = texts.learnt[:20], 1e-2
    draws = 20
    heads, neurons = (torch.stack(found) / draws for found in importance(encoder, texts, rows.repeat(draws)))
    plain = texts.encode(encoder, rows)
    for estimate, change, units in ((heads, scale_head, 4), (neurons, scale_neuron, 24)):
        wanted = torch.zeros(3, units)
        for layer in range(3):
            for unit in range(units):
                moved = copy.deepcopy(encoder)
                change(moved, layer, unit, 1 - step)
                wanted[layer, unit] = ((texts.encode(moved, rows) - plain) / step).square().sum()
        correlation = torch.corrcoef(torch.stack([estimate.flatten(), wanted.flatten()]))[0, 1]
        assert correlation > 0.9
        assert estimate.sum() == pytest.approx(float(wanted.sum()), rel=0.1)


def test_silent_units_go_first() -> None:
    encoder, texts = made()
    for layer in range(3):
        scale_head(encoder, layer, layer, 0.0)
        for neuron in range(0, 24, 2):
            scale_neuron(encoder, layer, neuron, 0.0)
    rows = torch.arange(ROWS)
    texts = Texts(texts.token_ids, texts.offsets, texts.encode(encoder, rows), texts.learnt, texts.held_out)
    prune(encoder, Prune(heads=3, feed_forward=12, recovery=Recovery(steps=0)), texts, quiet)
    torch.testing.assert_close(texts.encode(encoder, rows), texts.vectors_NW)


def test_the_layer_that_does_nothing_goes_first() -> None:
    encoder, texts = made()
    layer = layers_of(encoder.network)[1]
    for dense in (layer.attention.output.dense, layer.output.dense):
        dense.weight.zero_()
        dense.bias.zero_()
    rows = torch.arange(ROWS)
    vectors = texts.encode(encoder, rows)
    texts = Texts(texts.token_ids, texts.offsets, vectors, texts.learnt, texts.held_out)
    prune(encoder, Prune(layers=2, recovery=Recovery(steps=0)), texts, quiet)
    torch.testing.assert_close(texts.encode(encoder, rows), vectors, rtol=1e-4, atol=1e-4)


def test_recovery_brings_held_out_vectors_nearer_and_leaves_the_embeddings() -> None:
    encoder, texts = made()
    before = copy.deepcopy(encoder.network.embeddings.state_dict())
    bare = copy.deepcopy(encoder)
    prune(bare, Prune(layers=1, heads=2, recovery=Recovery(steps=0)), texts, quiet)
    prune(encoder, Prune(layers=1, heads=2, recovery=Recovery(steps=60, learning_rate=3e-3)), texts, quiet)
    lost = [1 - float(texts.cosine(e, texts.held_out).mean()) for e in (bare, encoder)]
    assert lost[1] < 0.7 * lost[0]
    assert all(torch.equal(before[name], value) for name, value in encoder.network.embeddings.state_dict().items())
    assert not any(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [({"layers": 3}, "layers: got 3; the encoder has 3"), ({"heads": 9}, "heads"), ({"feed_forward": 24}, "has 24")],
)
def test_more_than_there_is_cannot_be_kept(wanted: dict[str, int], problem: str) -> None:
    encoder, texts = made()
    with pytest.raises(ConfigError, match=problem):
        prune(encoder, Prune(**wanted), texts, quiet)


def test_adapters_are_refused() -> None:
    encoder, texts = made()
    add_adapters(encoder.network, 4, None)
    with pytest.raises(ConfigError, match="without adapters only"):
        prune(encoder, Prune(layers=1), texts, quiet)
