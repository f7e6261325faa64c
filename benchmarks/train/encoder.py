"""The text encoder: without padding against padded, top layers on kept activations against all, against the ceiling."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.train.timing import Texts, flops, ratio, seconds
from rayrank.features.text import item_text
from rayrank.models.encoder import TextEncoder
from rayrank.models.rounded import round_weights
from rayrank.models.tuning import Full, Top, TuneSpec, tune
from rayrank.sources.movielens import MovieLens, MovieLensConfig
from rayrank.sources.synthetic import Synthetic, SyntheticConfig

BATCH = 32
"""Texts of a padded batch."""
SHAPES = [(m, k, n) for m in (512, 1024, 2048) for k, n in ((384, 1536), (1536, 384), (1024, 1024))]
"""Matrix products whose best rate, by either library, is the ceiling."""


def item_texts(movielens: str | None) -> tuple[list[str], list[str]]:
    """Title and genres, and the full text, of every film; without the files, of generated items."""
    source = MovieLens(MovieLensConfig(path=movielens)) if movielens else Synthetic(SyntheticConfig(num_items=2000))
    rows = source.items().to_pylist()  # type: ignore[union-attr]
    short = source.schema.model_copy(update={"text": "{title}. {genres}" if movielens else "{title}"})
    return [item_text(short, row) for row in rows], [item_text(source.schema, row) for row in rows]


def padded_vectors(network: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Mean-pooled vectors of one padded batch, as model cards show it."""
    hidden = network(input_ids=ids, attention_mask=mask).last_hidden_state
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    return functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)


def plain_network(texts: Texts) -> nn.Module:
    """The library's network as it is loaded, its linear layers left alone."""
    network = deepcopy(texts.loaded.network.network)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            module.__class__ = nn.Linear
    return network


def useful_tokens(texts: list[str]) -> float:
    """Tokens of texts over tokens that the encoder computes, the whole catalogue at once."""
    found = Texts.of(texts, 64)
    encoder, everything = found.loaded.network, torch.arange(len(found.lengths))
    with torch.no_grad():
        return float(found.lengths.sum()) / _executed(
            encoder, lambda: encoder.encode(found.token_ids, found.offsets, everything)
        )


def bucketed_vs_padded(texts: list[str], width: int, count: int, rounds: int) -> float:
    """Times faster than padded to ``width``: forward and backward, all layers trained."""
    found = Texts.of(texts[:count], width)
    encoder, plain = found.loaded.network, plain_network(found)
    tune(encoder, Full())
    plain.requires_grad_(True)
    ids, mask = found.padded(width)
    everything = torch.arange(len(found.lengths))

    def ours() -> Tensor:
        return _learned(encoder, encoder.encode(found.token_ids, found.offsets, everything))

    def theirs() -> Tensor:
        batches = [slice(start, start + BATCH) for start in range(0, len(ids), BATCH)]
        return torch.cat([_learned(plain, padded_vectors(plain, ids[b], mask[b])) for b in batches])

    torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-4)
    return ratio(seconds({"padded": theirs, "ours": ours}, rounds), "padded", "ours")


def frozen_prefix_vs_full(texts: list[str], count: int, rounds: int) -> float:
    """Top two layers on kept activations against all layers on texts padded to 64: forward and backward."""
    found = Texts.of(texts[:count], 64)
    encoder, plain = found.loaded.network, plain_network(found)
    tune(encoder, Top(layers=2))
    plain.requires_grad_(True)
    ids, mask = found.padded(64)
    everything, below = torch.arange(len(found.lengths)), torch.zeros(len(found.token_ids), encoder.width)
    encoder.fill_frozen_part(found.token_ids, found.offsets, everything, below)

    def ours() -> Tensor:
        return _learned(encoder, encoder.encode(found.token_ids, found.offsets, everything, below))

    def theirs() -> Tensor:
        batches = [slice(start, start + BATCH) for start in range(0, len(ids), BATCH)]
        return torch.cat([_learned(plain, padded_vectors(plain, ids[b], mask[b])) for b in batches])

    torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-4)
    return ratio(seconds({"full": theirs, "ours": ours}, rounds), "full", "ours")


def gemm_share(texts: list[str], count: int, rounds: int, dtype: torch.dtype) -> tuple[float, float]:
    """(share of the ceiling that the encoder's forward pass reaches, the ceiling in GFLOP/s), one thread.

    In bfloat16 the encoder is one of a compressed bundle, whose weights are.
    """
    found = Texts.of(texts[:count], 128)
    encoder, everything = found.loaded.network, torch.arange(len(found.lengths))
    if dtype == torch.bfloat16:
        round_weights(encoder.network, "bfloat16")
    work = flops(found.lengths.numpy(), encoder.network)
    products = {f"{m}x{k}x{n}": _product((m, k, n), dtype) for m, k, n in SHAPES}
    with torch.no_grad():
        arms: dict[str, Callable[[], object]] = {name: call for name, (call, _) in products.items()}
        times = seconds({**arms, "ours": lambda: encoder.encode(found.token_ids, found.offsets, everything)}, rounds)
    rates = [max(size / t[r] for t, size in _sizes(times, products)) for r in range(rounds)]
    share = median(work / t / rate for t, rate in zip(times["ours"], rates, strict=True))
    return share, median(rates) / 1e9


def bf16_vs_fp32(texts: list[str], count: int, rounds: int) -> float:
    """Times faster with products in bfloat16: forward and backward, all layers trained; vectors agree to .01."""
    found = Texts.of(texts[:count], 64)
    encoder, everything = found.loaded.network, torch.arange(len(found.lengths))
    tune(encoder, Full())

    def learned(bf16: bool) -> Tensor:
        encoder.bf16 = bf16
        return _learned(encoder, encoder.encode(found.token_ids, found.offsets, everything))

    torch.testing.assert_close(learned(True), learned(False), rtol=0, atol=0.01)
    times = seconds({"fp32": lambda: learned(False), "bf16": lambda: learned(True)}, rounds)
    return ratio(times, "fp32", "bf16")


def kinds_of_tuning(
    texts: list[str], kinds: dict[str, TuneSpec], count: int, rounds: int
) -> dict[str, dict[str, float]]:
    """By kind: share of the weights that is trained, texts a second forward and backward."""
    found = {}
    for name, spec in kinds.items():
        data = Texts.of(texts[:count], 64)
        encoder, everything = data.loaded.network, torch.arange(len(data.lengths))
        tune(encoder, spec)
        below = None
        if encoder.frozen_layers:
            below = torch.zeros(len(data.token_ids), encoder.width)
            encoder.fill_frozen_part(data.token_ids, data.offsets, everything, below)
        trained = sum(p.numel() for p in encoder.parameters() if p.requires_grad)

        def step(encoder: TextEncoder = encoder, data: Texts = data, below: Tensor | None = below) -> None:
            _learned(encoder, encoder.encode(data.token_ids, data.offsets, torch.arange(len(data.lengths)), below))

        times = seconds({name: step}, rounds)[name]
        share = trained / sum(p.numel() for p in encoder.parameters())
        found[name] = {"trained share": share, "texts/s": len(data.lengths) / median(times)}
    return found


def _learned(network: nn.Module, vectors: Tensor) -> Tensor:
    """The vectors, after a backward pass of something that depends on all of them."""
    network.zero_grad(set_to_none=True)
    vectors.square().mul(torch.linspace(-1, 1, vectors.shape[1])).sum().backward()
    return vectors.detach()


def _executed(encoder: TextEncoder, work: Callable[[], object]) -> float:
    """Tokens that the lowest layer was given."""
    seen: list[int] = []
    first = encoder.network.encoder.layer[0]  # type: ignore[union-attr, index]
    handle = first.attention.self.query.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[0]))  # type: ignore[union-attr, operator]
    work()
    handle.remove()
    return float(np.sum(seen))


def _product(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    """The faster of both libraries on one shape, done several times, and its operations."""
    m, k, n = shape
    x, weight = torch.randn(m, k, dtype=dtype), torch.randn(n, k, dtype=dtype)
    times = max(1, int(2e9 / (2 * m * k * n)))

    def by_onednn() -> None:
        for _ in range(times):
            torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "none")

    def by_torch() -> None:
        for _ in range(times):
            functional.linear(x, weight)

    with torch.no_grad():
        best = seconds({"onednn": by_onednn, "torch": by_torch}, 3)
    call = by_onednn if min(best["onednn"]) < min(best["torch"]) else by_torch
    return call, float(times * 2 * m * k * n)


def _sizes(
    times: dict[str, list[float]], products: dict[str, tuple[Callable[[], object], float]]
) -> list[tuple[list[float], float]]:
    return [(times[name], size) for name, (_, size) in products.items()]
