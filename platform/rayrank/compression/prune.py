"""Which layers, heads and neurons of a text encoder can go, and the training that mends what their loss broke.

A layer's importance is measured: how far the text vectors turn without it, one layer after the other until enough are
gone. That of heads (Michel et al., NeurIPS 2019) and neurons (Molchanov et al., ICLR 2017) is the first-order Taylor
estimate of how far the vectors move when the unit's output becomes 0. Recovery is regression of the original's
vectors (Sanh et al., 2019, keep the layers that are left as they are as the start, too).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rayrank.compression.recovery import recover
from rayrank.compression.spec import Prune, Recovery
from rayrank.compression.texts import Texts
from rayrank.config import ConfigError
from rayrank.models.compact import heads_of, keep_heads, keep_layers, keep_neurons, neurons_of
from rayrank.models.encoder import TextEncoder
from rayrank.models.packed import is_packable, layers_of


def prune(encoder: TextEncoder, spec: Prune, texts: Texts, progress: Callable[[str], None]) -> None:
    """Take out the least important units, in place, then train what is left; the embeddings stay as they are.

    Raises:
        ConfigError: a network of another shape than BERT's, with adapters, or with no more units than are to be kept.
    """
    network, rows = encoder.network, texts.learnt[: spec.judged_texts]
    _check(network, spec)
    if spec.layers is not None:
        _drop_layers(encoder, spec.layers, texts, rows, progress)
    if spec.heads is not None or spec.feed_forward is not None:
        progress("measuring heads and neurons")
        heads, neurons = importance(encoder, texts, rows)
        if spec.heads is not None:
            keep_heads(network, [_best(scores, spec.heads) for scores in heads])
        if spec.feed_forward is not None:
            keep_neurons(network, [_best(scores, spec.feed_forward) for scores in neurons])
    _report(encoder, texts, "after pruning", progress)
    if spec.recovery.steps:
        _recover(encoder, spec.recovery, texts, progress)
        _report(encoder, texts, "after recovery", progress)


def importance(encoder: TextEncoder, texts: Texts, rows: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Per layer: importance of its heads (H,) and of its neurons (F,).

    Σ ‖Σ_t a_t ∂v/∂a_t‖² over texts, for a unit's output a at token t and the text vector v. One backward pass from
    v · r with random signs r gives, squared, an estimate without bias for all units at once (Hutchinson); texts go one
    by one, or their errors would add up.
    """
    signs = torch.Generator().manual_seed(0)
    layers = layers_of(encoder.network)
    found = {"heads": [torch.zeros(())] * len(layers), "neurons": [torch.zeros(())] * len(layers)}
    for few in rows.split(1):
        with _watched(layers) as watched, torch.enable_grad():
            vectors = texts.encode(encoder, few)
            random = torch.randint(0, 2, vectors.shape, generator=signs) * 2.0 - 1.0
            slopes = torch.autograd.grad((vectors * random).sum(), [unit.outputs_TU for unit in watched])
        for unit, slope_TU in zip(watched, slopes, strict=True):
            moved_U = (unit.outputs_TU.detach() * slope_TU).sum(0)
            if unit.kind == "heads":
                moved_U = moved_U.unflatten(0, (heads_of(encoder.network), -1)).sum(1)
            found[unit.kind][unit.layer] = found[unit.kind][unit.layer] + moved_U.square()
    return found["heads"], found["neurons"]


@dataclass(frozen=True)
class _Units:
    """What the heads or neurons of a layer put out for the tokens of a block."""

    kind: str
    layer: int
    outputs_TU: Tensor


@contextmanager
def _watched(layers: Sequence[nn.Module]) -> Iterator[list[_Units]]:
    """The outputs of all heads and neurons, as they come; those below any other start the graph."""
    found: list[_Units] = []

    def keep(kind: str, place: int, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        found.append(_Units(kind, place, given[0] if given[0].requires_grad else given[0].requires_grad_()))

    hooks = []
    for place, layer in enumerate(layers):
        part: Any = layer
        for kind, after in (("heads", part.attention.output.dense), ("neurons", part.output.dense)):
            hooks.append(after.register_forward_pre_hook(partial(keep, kind, place)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _drop_layers(
    encoder: TextEncoder, wanted: int, texts: Texts, rows: Tensor, progress: Callable[[str], None]
) -> None:
    network, stack = encoder.network, layers_of(encoder.network)
    kept = list(range(len(stack)))
    while len(kept) > wanted:
        likeness = {}
        for place in kept:
            network.encoder.layer = nn.ModuleList([stack[i] for i in kept if i != place])  # type: ignore[union-attr]
            likeness[place] = float(texts.cosine(encoder, rows).mean())
        gone = max(kept, key=lambda place: likeness[place])
        kept.remove(gone)
        progress(f"layer {gone + 1} goes: text vectors keep a cosine of {likeness[gone]:.4f}")
    network.encoder.layer = nn.ModuleList(stack)  # type: ignore[union-attr]
    keep_layers(network, kept)


def _recover(encoder: TextEncoder, spec: Recovery, texts: Texts, progress: Callable[[str], None]) -> None:
    parameters = [p.requires_grad_(True) for layer in layers_of(encoder.network) for p in layer.parameters()]
    order = torch.Generator().manual_seed(spec.seed)

    def losses() -> Iterator[Tensor]:
        """1 − cosine; unit vectors: half the squared distance."""
        while True:
            rows = texts.learnt[torch.randint(len(texts.learnt), (spec.texts,), generator=order)]
            yield (texts.encode(encoder, rows) - texts.vectors_NW[rows]).square().sum(-1).mean() / 2

    recover(parameters, spec, losses(), progress)
    encoder.requires_grad_(False)


def _best(scores: Tensor, count: int) -> Tensor:
    """Places of the highest scores, rising."""
    return scores.topk(count).indices.sort().values


def _report(encoder: TextEncoder, texts: Texts, when: str, progress: Callable[[str], None]) -> None:
    progress(f"{when}: cosine {float(texts.cosine(encoder, texts.held_out).mean()):.4f} on texts held out")


def _check(network: nn.Module, spec: Prune) -> None:
    kind = getattr(network.config, "model_type", None)
    if not is_packable(network) or getattr(network.config, "adapters", None):
        rule = "units are known of BERT-shaped encoders without adapters only"
        raise ConfigError("method.kind", kind, rule, "choose another method")
    there = {"layers": len(layers_of(network)), "heads": heads_of(network), "feed_forward": neurons_of(network)}
    for name, size in there.items():
        wanted = getattr(spec, name)
        if wanted is not None and wanted >= size:
            raise ConfigError(f"method.{name}", wanted, f"the encoder has {size}", "keep fewer, or leave it out")
