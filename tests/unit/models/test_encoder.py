"""The packed encoder against the library's own forward pass: vectors, gradients, frozen layers kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrank.models.encoder import TextEncoder, build_encoder
from rayrank.models.linear import Linear, linear, multiplies_bf16, quicken
from rayrank.models.tuning import Frozen, Full, Top, tune

LENGTHS = [0, 3, 5, 3, 9, 1, 5, 12, 12, 0, 7]
BERT = {
    "model_type": "bert", "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 16, "initializer_range": 0.3,
}  # fmt: skip
ROBERTA = {**BERT, "model_type": "roberta", "pad_token_id": 1, "max_position_embeddings": 24, "type_vocab_size": 1}
DISTIL = {
    "model_type": "distilbert", "vocab_size": 30, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32,
    "max_position_embeddings": 16, "hidden_size": 16,
}  # fmt: skip


def texts() -> tuple[Tensor, Tensor]:
    offsets = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()])
    return torch.randint(4, 30, (sum(LENGTHS),), dtype=torch.int32), offsets


def reference(encoder: TextEncoder, tokens: Tensor, offsets: Tensor, row: int) -> Tensor:
    """One text through the library's forward pass."""
    ids = tokens[offsets[row] : offsets[row + 1]].long().unsqueeze(0)
    if not ids.numel():
        return torch.zeros(encoder.width)
    hidden = encoder.network(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    return functional.normalize(hidden.mean(1), dim=-1)[0]


@pytest.mark.parametrize("config", [BERT, ROBERTA, DISTIL], ids=lambda c: c["model_type"])
def test_vectors_and_gradients_are_those_of_the_library(config: dict) -> None:
    torch.manual_seed(0)
    encoder, (tokens, offsets) = build_encoder(config), texts()
    assert encoder.packed == (config is not DISTIL)
    rows = torch.tensor([7, 4, 0, 1, 2, 3, 10, 8])
    weight = torch.randn(len(rows), encoder.width)

    def gradients(vectors: Tensor) -> dict[str, Tensor]:
        encoder.zero_grad()
        (vectors * weight).sum().backward()
        return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}

    wanted = torch.stack([reference(encoder, tokens, offsets, int(row)) for row in rows])
    found = encoder.encode(tokens, offsets, rows)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    ours, theirs = gradients(found), gradients(wanted)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 20
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    with torch.no_grad():  # other code: fused GELU, sums in place
        torch.testing.assert_close(encoder.encode(tokens, offsets, rows), wanted.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
def test_what_lies_below_the_trained_layers_is_computed_once(layers: int) -> None:
    torch.manual_seed(0)
    encoder, (tokens, offsets) = build_encoder(BERT), texts()
    tune(encoder, Top(layers=layers))
    assert encoder.frozen_layers == 3 - layers
    below, rows = torch.full((len(tokens), 16), float("nan")), torch.tensor([7, 4, 0, 1])
    for share in (torch.arange(0, len(LENGTHS), 2), torch.arange(1, len(LENGTHS), 2)):
        encoder.fill_frozen_part(tokens, offsets, share, below)
    wanted, found = encoder.encode(tokens, offsets, rows), encoder.encode(tokens, offsets, rows, below)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.nn.init.zeros_(encoder.network.embeddings.word_embeddings.weight)  # type: ignore[union-attr, arg-type]
    assert torch.equal(encoder.encode(tokens, offsets, rows, below), found), "the embeddings are not read again"
    assert not torch.allclose(encoder.encode(tokens, offsets, rows), found, atol=1e-3)


def test_no_layer_is_frozen_when_the_lowest_is_trained_or_the_network_is_another() -> None:
    full, other = build_encoder(BERT), build_encoder(DISTIL)
    tune(full, Full())
    tune(other, Frozen())
    assert (full.frozen_layers, other.frozen_layers) == (0, 0)


@pytest.mark.parametrize("shape", [(3, 8), (400, 64), (384, 64), (5, 100, 64)], ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_a_linear_layer_gives_what_torch_gives(shape: tuple[int, ...], biased: bool) -> None:
    torch.manual_seed(0)
    theirs = nn.Linear(shape[-1], 80, bias=biased)
    ours = nn.Linear(shape[-1], 80, bias=biased)
    ours.load_state_dict(theirs.state_dict())
    assert type(quicken(nn.Sequential(ours))[0]) is Linear  # type: ignore[index]
    x = torch.randn(shape, requires_grad=True)
    weight = torch.randn(*shape[:-1], 80)
    for got, wanted in zip(_everything(ours, x, weight), _everything(theirs, x, weight), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
        gelu = linear(x, theirs.weight, theirs.bias, gelu=True)
        torch.testing.assert_close(gelu, functional.gelu(theirs(x)), rtol=1e-5, atol=1e-5)


def _everything(layer: nn.Module, x: Tensor, weight: Tensor) -> list[Tensor]:
    x.grad = None
    out = layer(x)
    (out * weight).sum().backward()
    assert x.grad is not None
    return [out.detach(), x.grad.clone(), *(p.grad for p in layer.parameters() if p.grad is not None)]


@pytest.mark.parametrize("config", [BERT, DISTIL], ids=lambda c: c["model_type"])
def test_bfloat16_is_for_training_alone(config: dict) -> None:
    torch.manual_seed(0)
    encoder, (tokens, offsets) = build_encoder(config), texts()
    rows = torch.tensor([7, 4, 0, 1, 2, 3, 10, 8])
    weight = torch.randn(len(rows), encoder.width)

    def learned(bf16: bool) -> tuple[Tensor, Tensor]:
        encoder.bf16 = bf16
        encoder.zero_grad()
        vectors = encoder.encode(tokens, offsets, rows)
        (vectors * weight).sum().backward()
        grads = [p.grad for p in encoder.parameters() if p.grad is not None]
        assert {grad.dtype for grad in grads} == {torch.float32}
        return vectors.detach(), torch.cat([grad.flatten() for grad in grads])

    (plain, plain_grad), (low, low_grad) = learned(False), learned(True)
    assert low.dtype == torch.float32
    assert not torch.equal(low, plain)
    torch.testing.assert_close(low, plain, rtol=0, atol=0.02)
    assert torch.cosine_similarity(low_grad, plain_grad, 0) > 0.995
    with torch.no_grad():  # what is kept and served
        kept = encoder.encode(tokens, offsets, rows)
        encoder.bf16 = False
        assert torch.equal(kept, encoder.encode(tokens, offsets, rows))


@pytest.mark.skipif(not multiplies_bf16(torch.device("cpu")), reason="this processor has no bfloat16: torch's own way")
def test_a_linear_layer_under_autocast_gives_what_torch_gives() -> None:
    torch.manual_seed(0)
    theirs, ours = nn.Linear(64, 80), Linear(64, 80)
    nn.init.normal_(theirs.bias)
    ours.load_state_dict(theirs.state_dict())
    x, weight = torch.randn(384, 64, requires_grad=True), torch.randn(384, 80)
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = _everything(ours, x, weight), _everything(theirs, x, weight)
    assert [each.dtype for each in found] == [each.dtype for each in wanted]
    for got, want in zip(found, wanted, strict=True):
        error = (got.float() - want.float()).abs().max() / want.float().abs().max()
        assert error < 0.02, error
    assert type(ours(x).grad_fn).__name__ == "_ProductBackward"


@pytest.mark.skipif(not multiplies_bf16(torch.device("cpu")), reason="this processor has no bfloat16: torch's own way")
def test_blocks_share_the_weights_that_wait_for_their_backward_pass() -> None:
    layer, kept = Linear(64, 80), set[int]()

    def keep(tensor: Tensor) -> Tensor:
        kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    x = [torch.randn(384, 64) for _ in range(3)]
    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        outs = [layer(block) for block in x]
    assert len(outs) == 3
    assert len(kept) == 4, "three inputs, one weight"


def test_bfloat16_pays_on_a_cpu_for_packed_networks_only() -> None:
    cpu = torch.device("cpu")
    assert build_encoder(BERT).multiplies_bf16(cpu) == multiplies_bf16(cpu)
    assert not build_encoder(DISTIL).multiplies_bf16(cpu)
