"""What a stage of training is made of at a moment: weights, optimiser, averages; into snapshots and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rayrank.learning.collectives import Collectives
from rayrank.learning.inputs import Snapshot
from rayrank.learning.optimiser import Average, Rates, build_optimiser, sum_gradients
from rayrank.learning.tables import LazyTables
from rayrank.models.ranker import Ranker


@dataclass
class StageState:
    """A model and what trains part of it: ``parameters`` whole in every step, large id tables row by row."""

    model: Ranker
    parameters: list[nn.Parameter]
    optimiser: torch.optim.AdamW
    average: Average
    tables: LazyTables
    dropped: nn.Module | None = None

    @staticmethod
    def of(
        model: Ranker,
        parameters: list[nn.Parameter],
        rates: Rates,
        kept: tuple[float, int],
        dropped: nn.Module | None = None,
    ) -> StageState:
        """Before the first step.

        Args:
            model: the ranker.
            parameters: those of it that the stage trains.
            rates: peak learning rates and decays.
            kept: decay of the averages; rows from which on an id table is large.
            dropped: what is trained beside the model and dropped at the end.
        """
        ema, dense_rows = kept
        parameters = [*parameters, *(dropped.parameters() if dropped else ())]
        own = {id(p) for p in parameters}
        large = [t for t in model.id_tables() if t.num_embeddings > dense_rows and id(t.weight) in own]
        own -= {id(table.weight) for table in large}
        rest = [p for p in parameters if id(p) in own]
        tables = LazyTables(large, rates.id_rate, rates.id_decay)
        return StageState(model, rest, build_optimiser(model, rest, rates), Average(rest, ema), tables, dropped)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Around a step's forward and backward passes, one for each micro-batch; their gradients add up."""
        self.optimiser.zero_grad(set_to_none=True)
        with self.tables.collecting():
            yield

    def update(self, share: float, clip: float, collectives: Collectives) -> None:
        """The step, from the gradients of all ranks, at a share of the peak rates; then comes :meth:`follow`."""
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * share
        parameters = [*self.parameters, *self.tables.gather(collectives)]
        sum_gradients(parameters, collectives)
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        self.optimiser.step()
        self.tables.step(share, self.average.next_decay)

    def follow(self) -> None:
        """The averages of the parameters follow, after whatever else a step does to them."""
        self.average.update()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights inside, the trained ones again afterwards."""
        self.tables.swap()
        with self.average.applied():
            yield
        self.tables.swap()

    def keep_averages(self) -> None:
        """Replace the trained weights for good; this is the end of the stage."""
        self.tables.swap()
        self.average.keep()

    def tensors(self) -> dict[str, Tensor]:
        """Everything by name, as views: copy before the next step."""
        found = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        found |= {f"dropped/{n}": value for n, value in (self.dropped.state_dict() if self.dropped else {}).items()}
        found |= {f"average/{i}": value for i, value in enumerate(self.average.values)}
        for i, parameter in enumerate(self.parameters):
            for name, value in self.optimiser.state[parameter].items():
                found[f"optimiser/{i}/{name}"] = value
        return found | {f"tables/{name}": value for name, value in self.tables.tensors().items()}

    def put_back(self, saved: Snapshot) -> None:
        """Go on from what :meth:`tensors` gave; the number of averages' updates is in the meta."""
        self.model.load_state_dict(under(saved.tensors, "model/"))
        if self.dropped:
            self.dropped.load_state_dict(under(saved.tensors, "dropped/"))
        self.average.updates = int(saved.meta["updates"])
        self.tables.put_back(under(saved.tensors, "tables/"))
        for i, parameter in enumerate(self.parameters):
            self.average.values[i] = saved.tensors[f"average/{i}"].to(parameter.device, copy=True)
            # Copies: the snapshot may serve another run, and these are updated in place.
            known = under(saved.tensors, f"optimiser/{i}/")
            self.optimiser.state[parameter] = {n: value.to(parameter.device, copy=True) for n, value in known.items()}


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, by the rest of their names."""
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def share_marks(model: Ranker, collectives: Collectives) -> None:
    """Every rank knows the users and items that any rank has trained on."""
    for buffer in (model.trained_users_U, model.trained_items_N):
        buffer.copy_((collectives.all_reduce_sum(buffer) > 0).to(buffer.dtype))
