"""What a stage of training is made of at a moment: weights, optimiser, averages; into snapshots and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rayrank.learning.collectives import Collectives
from rayrank.learning.inputs import Snapshot
from rayrank.learning.optimiser import Average
from rayrank.models.ranker import Ranker


@dataclass
class StageState:
    """A model and what trains ``parameters`` of it."""

    model: Ranker
    parameters: list[nn.Parameter]
    optimiser: torch.optim.AdamW
    average: Average

    def tensors(self) -> dict[str, Tensor]:
        """Everything by name, as views: copy before the next step."""
        found = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        found |= {f"average/{i}": value for i, value in enumerate(self.average.values)}
        for i, parameter in enumerate(self.parameters):
            for name, value in self.optimiser.state[parameter].items():
                found[f"optimiser/{i}/{name}"] = value
        return found

    def put_back(self, saved: Snapshot) -> None:
        """Go on from what :meth:`tensors` gave; the number of averages' updates is in the meta."""
        self.model.load_state_dict(under(saved.tensors, "model/"))
        self.average.updates = int(saved.meta["updates"])
        for i, parameter in enumerate(self.parameters):
            self.average.values[i] = saved.tensors[f"average/{i}"].to(parameter.device, copy=True)
            # Copies: the snapshot may serve another run, and these are updated in place. (The optimiser's step stays
            # on the CPU, where AdamW keeps it.)
            known = under(saved.tensors, f"optimiser/{i}/")
            self.optimiser.state[parameter] = {
                name: value.clone() if name == "step" else value.to(parameter.device, copy=True)
                for name, value in known.items()
            }


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, by the rest of their names."""
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def share_marks(model: Ranker, collectives: Collectives) -> None:
    """Every rank knows the users and items that any rank has trained on."""
    for buffer in (model.trained_users_U, model.trained_items_N):
        buffer.copy_((collectives.all_reduce_sum(buffer) > 0).to(buffer.dtype))


def snapshot(tensors: dict[str, Tensor], meta: dict[str, object]) -> Snapshot:
    """Copies on the CPU."""
    return Snapshot({name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}, meta)
