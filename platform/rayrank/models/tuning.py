"""How much of a text encoder is trained: nothing, its top layers, low-rank additions, adapters, everything.

Low-rank additions are peft's and are merged into the weights when training is over; adapters stay in the network.
Knows encoders; knows nothing about losses or data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, assert_never

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rayrank.config import Config, ConfigError
from rayrank.models.linear import Linear, quicken
from rayrank.models.packed import is_packable, layers_of

if TYPE_CHECKING:
    from rayrank.models.encoder import TextEncoder

_PROJECTIONS = ("query", "key", "value")
"""Modules that low-rank matrices are added to, unless the config names others."""


class Frozen(Config):
    """Nothing is trained: every text is encoded once."""

    kind: Literal["frozen"] = "frozen"


class Full(Config):
    """Everything is trained."""

    kind: Literal["full"] = "full"


class Top(Config):
    """The top layers are trained; what lies below is computed once."""

    kind: Literal["top"] = "top"
    layers: int = Field(1, ge=1, description="layers that are trained, counted from the top")


class _Added(Config):
    layers: int | None = Field(None, ge=1, description="layers that get them, counted from the top; null: all")


class Lora(_Added):
    """Low-rank matrices beside the attention's projections (Hu et al., ICLR 2022)."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1, description="rank of an addition")
    alpha: int = Field(16, ge=1, description="an addition counts alpha / rank times")
    modules: tuple[str, ...] = Field(_PROJECTIONS, min_length=1, description="names of the linear modules that get one")


class AdaLora(_Added):
    """Low-rank matrices whose ranks are dealt by importance while training (Zhang et al., ICLR 2023)."""

    kind: Literal["adalora"] = "adalora"
    rank: int = Field(4, ge=1, description="mean rank at the end")
    first_rank: int = Field(8, ge=1, description="rank at the start")
    alpha: int = Field(16, ge=1, description="scale of the additions")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps before ranks shrink")
    final: float = Field(0.3, ge=0, lt=1, description="share of the steps after ranks are final")
    orthogonal: float = Field(0.1, ge=0, description="weight of the penalty that keeps singular vectors orthogonal")
    modules: tuple[str, ...] = Field(_PROJECTIONS, min_length=1, description="names of the linear modules that get one")


class Adapters(_Added):
    """A bottleneck after each feed-forward part (Houlsby et al., ICML 2019; placed as by Pfeiffer et al., 2021)."""

    kind: Literal["adapters"] = "adapters"
    width: int = Field(48, ge=1, description="width of the bottleneck")


TuneSpec = Annotated[Frozen | Full | Top | Lora | AdaLora | Adapters, Field(discriminator="kind")]


class Adapter(nn.Module):
    """A linear layer followed by a bottleneck with a residual; starts as the linear layer alone."""

    def __init__(self, dense: nn.Linear, width: int) -> None:
        super().__init__()
        self.dense, self.down, self.up = dense, Linear(dense.out_features, width), Linear(width, dense.out_features)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(…, W) from (…, V)."""
        x = self.dense(x)
        return x + self.up(functional.gelu(self.down(x)))


def tune(encoder: TextEncoder, spec: TuneSpec) -> None:
    """Prepare an encoder, in place: what is to be trained gets ``requires_grad``, what is to be added is added.

    Raises:
        ConfigError: layers asked of a network of unknown shape, more layers than it has, or peft is not installed.
    """
    network = encoder.network
    network.requires_grad_(isinstance(spec, Full))
    match spec:
        case Frozen() | Full():
            pass
        case Top():
            for layer in _top(network, spec.layers):
                layer.requires_grad_(True)
        case Adapters():
            add_adapters(network, spec.width, spec.layers)
        case Lora() | AdaLora():
            encoder.additions = _added(network, spec)
        case _:
            assert_never(spec)
    encoder.frozen_layers = _frozen_layers(network)


def _frozen_layers(network: nn.Module) -> int:
    if not is_packable(network) or any(p.requires_grad for p in network.embeddings.parameters()):  # type: ignore[union-attr]
        return 0
    trained = [any(p.requires_grad for p in layer.parameters()) for layer in layers_of(network)]
    return trained.index(True) if True in trained else len(trained)


def add_adapters(network: nn.Module, width: int, layers: int | None) -> None:
    """Put trainable adapters into the top ``layers`` and write them into the network's config."""
    for layer in _top(network, layers):
        part: Any = layer.output
        part.dense = Adapter(part.dense, width)
        for module in (part.dense.down, part.dense.up):
            module.requires_grad_(True)
    network.config.adapters = {"width": width, "layers": layers}  # type: ignore[union-attr]


class Additions:
    """peft's low-rank additions to a network: their part in a step, what a snapshot needs of them, their end."""

    def __init__(self, tuner: Any, spec: Lora | AdaLora) -> None:
        self._tuner, self._spec = tuner, spec

    def begin(self, steps: int) -> None:
        """Training will take so many steps."""
        if isinstance(self._spec, AdaLora):
            config = self._tuner.peft_config["default"]
            config.total_step = max(steps, 3)
            config.tinit = int(self._spec.warmup * config.total_step)
            config.tfinal = min(int(self._spec.final * config.total_step), config.total_step - config.tinit - 1)
            self._tuner.rankallocator.set_total_step(config.total_step)

    def penalty(self) -> Tensor | None:
        """What is added to the loss: mean distance of the singular vectors from orthogonality."""
        if not isinstance(self._spec, AdaLora) or not self._spec.orthogonal:
            return None
        found = []
        for name, p in self._tuner.model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                square = p @ p.T if "lora_A" in name else p.T @ p
                found.append(torch.linalg.matrix_norm(square - torch.eye(len(square), device=p.device)))
        return self._spec.orthogonal * torch.stack(found).mean()

    def after_step(self, step: int) -> None:
        """Deal the ranks; ``step`` counts from 1, gradients must still be there."""
        if isinstance(self._spec, AdaLora):
            self._tuner.update_and_allocate(step)

    def tensors(self) -> dict[str, Tensor]:
        """What the dealing of ranks remembers."""
        if not isinstance(self._spec, AdaLora):
            return {}
        dealer = self._tuner.rankallocator
        found = {f"{kept}/{name}": value for kept in _KEPT for name, value in getattr(dealer, kept).items()}
        ranks = self._tuner.peft_config["default"].rank_pattern or {}
        return found | {f"ranks/{name}": torch.as_tensor(value) for name, value in ranks.items()}

    def put_back(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what :meth:`tensors` gave."""
        if not isinstance(self._spec, AdaLora):
            return
        for kept in _KEPT:
            setattr(self._tuner.rankallocator, kept, _below(tensors, f"{kept}/"))
        ranks = {name: value.tolist() for name, value in _below(tensors, "ranks/").items()}
        self._tuner.peft_config["default"].rank_pattern = ranks or None

    def merge(self) -> None:
        """Add them to the network's own weights and take them out."""
        self._tuner.merge_and_unload()


_KEPT = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""Attributes of peft's RankAllocator that grow from step to step."""


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value.clone() for name, value in tensors.items() if name.startswith(prefix)}


def _top(network: nn.Module, layers: int | None) -> list[nn.Module]:
    if not is_packable(network):
        kind = getattr(network.config, "model_type", None)
        raise ConfigError(
            "encoder", kind, "layers are known of BERT-shaped encoders only", "tune: frozen, full or lora"
        )
    stack = layers_of(network)
    if layers is not None and layers > len(stack):
        raise ConfigError("encoder.tune.layers", layers, f"the encoder has {len(stack)} layers", "ask for fewer")
    return stack[len(stack) - layers :] if layers else stack


def _added(network: nn.Module, spec: Lora | AdaLora) -> Additions:
    try:
        import peft
    except ImportError:
        rule = "the package peft must be installed"
        raise ConfigError("encoder.tune.kind", spec.kind, rule, "pip install 'rayrank[lora]', or tune: top") from None
    names = _targets(network, spec)
    if isinstance(spec, Lora):
        config = peft.LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules=names)
        tuner: Any = peft.LoraModel(network, config, "default")
    else:
        config = peft.AdaLoraConfig(  # the number of steps comes with begin()
            target_r=spec.rank, init_r=spec.first_rank, lora_alpha=spec.alpha, target_modules=names, total_step=3
        )
        tuner = peft.AdaLoraModel(network, config, "default")
    quicken(network)
    return Additions(tuner, spec)


def _targets(network: nn.Module, spec: Lora | AdaLora) -> list[str]:
    """Full names of the linear modules that get an addition."""
    among = {id(m) for layer in _top(network, spec.layers) for m in layer.modules()} if spec.layers else None
    found = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in spec.modules
        if among is None or id(module) in among
    ]
    if not found:
        there = sorted({n.rsplit(".", 1)[-1] for n, m in network.named_modules() if isinstance(m, nn.Linear)})
        raise ConfigError(
            "encoder.tune.modules", list(spec.modules), f"linear modules are {there}", "name some of those"
        )
    return found
