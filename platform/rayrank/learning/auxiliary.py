"""A second output layer that learns from the teacher in place of the first, and is dropped when training ends.

The layers below are shared, so they learn from both; the logits that are served have seen hard labels alone, and what
a teacher gets wrong on average stays in the layer that goes (auxiliary distillation; Khani et al., RecSys 2024). The
layer listens to what the path's own last layer reads, so a model need not know of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from rayrank.models.ranker import Ranker
from rayrank.objectives.spec import ObjectiveSpec


class Auxiliary(nn.Module):
    """Beside ``layer``, the last one of a path, which gives a logit for each event task."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.second = nn.Linear(layer.in_features, layer.out_features)
        self.second.load_state_dict(layer.state_dict())  # they start as one
        self.to(layer.weight.device)
        self._layer, self._heard = [layer], list[tuple[Tensor, Tensor]]()  # in a list: no part of this module

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Around the forward pass whose logits :meth:`instead` is asked about."""
        self._heard.clear()
        hook = self._layer[0].register_forward_hook(lambda _, given, said: self._heard.append((given[0], said)))
        try:
            yield
        finally:
            hook.remove()

    def instead(self, logits_BQK: Tensor) -> Tensor:
        """(B, Q, K): the logits with the second layer in the place of the first."""
        ((given, said),) = self._heard
        self._heard.clear()
        found: Tensor = logits_BQK - said + self.second(given)
        return found


def of_static_path(model: Ranker, spec: ObjectiveSpec) -> Auxiliary | None:
    """Beside the static path, where the objective wants one."""
    return Auxiliary(model.static.interaction) if _wanted(spec) else None


def of_sequence_path(model: Ranker, spec: ObjectiveSpec) -> Auxiliary | None:
    """Beside the sequence path, where the objective wants one.

    Raises:
        ValueError: the model has no single layer that its logits end with.
    """
    if not _wanted(spec) or not model.has_sequence:
        return None
    layer = getattr(model, "output", None)
    if not isinstance(layer, nn.Linear) or layer.out_features != len(model.event_tasks):
        raise ValueError("objective.distillation.auxiliary needs model.kind student, whose logits end with one layer")
    return Auxiliary(layer)


def _wanted(spec: ObjectiveSpec) -> bool:
    return spec.distillation is not None and spec.distillation.auxiliary
