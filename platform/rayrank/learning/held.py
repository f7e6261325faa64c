"""The train targets of many micro-batches, held column by column in as few bytes as they need.

Each becomes a sequence of one event that sees no history, for the static path. What is equal for all of them (parts,
requests, profile labels, which that path has no head for) is not held but made anew for the few that are taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rayrank.batch import FAR, Events, SequenceBatch
from rayrank.learning.inputs import Step
from rayrank.schema import TRAIN, DatasetSchema, MulticlassTask

_WIDE = ("time", "row")
"""Integers that 32 bits may not hold; all others are rows of tables and categories."""


@dataclass(frozen=True)
class Held:
    """R train targets."""

    columns: Mapping[str, Tensor]  # '<field>' or '<field>/<name>' -> (R,), or (R, M) of several categories
    schema: DatasetSchema

    @staticmethod
    def of(steps: Iterable[Step], schema: DatasetSchema) -> Held | None:
        """The train targets of some steps; None when there are none."""
        parts: dict[str, list[Tensor]] = {}
        for step in steps:
            for batch in step:
                for name, column in _columns(batch):
                    parts.setdefault(name, []).append(column)
        if not parts:
            return None
        # One column at a time, so that no more than one is there twice.
        return Held({name: torch.cat(parts.pop(name)) for name in list(parts)}, schema)

    def __len__(self) -> int:
        return len(self.columns["row"])

    def take(self, rows: Tensor) -> SequenceBatch:
        """Some of them as sequences of one event; keys are row numbers."""
        taken = {name: column[rows] for name, column in self.columns.items()}
        one = {name: value if value.is_floating_point() else value.long() for name, value in taken.items()}
        row_B, nothing_B = one["row"], torch.full_like(rows, FAR, dtype=torch.int32)
        unseen, apart, best, best_apart = (
            {name: value_BS.unsqueeze(1) for name, value_BS in _group(one, field).items()}
            for field in ("unseen_soft", "unseen_spread", "best_soft", "best_spread")
        )
        profiles = [task.name for task in self.schema.of_kind(MulticlassTask)]
        return SequenceBatch(
            events=Events(
                item_BT=one["item"].unsqueeze(1),
                request_BT=torch.ones_like(rows, dtype=torch.int32).unsqueeze(1),
                time_BT=one["time"].unsqueeze(1),
                labels_BT={name: value_B.unsqueeze(1) for name, value_B in _group(one, "label").items()},
                user_B=one["user"],
                user_features=_group(one, "user"),
                key_B=row_B,
            ),
            context={name: value_B.unsqueeze(1) for name, value_B in _group(one, "context").items()},
            part_BT=torch.full_like(rows, TRAIN, dtype=torch.int8).unsqueeze(1),
            row_BT=row_B.unsqueeze(1),
            valid_from_B=nothing_B,
            test_from_B=nothing_B,
            profile_B={name: torch.full_like(rows, -1) for name in profiles},
            profile_hidden_B={name: torch.zeros_like(rows, dtype=torch.bool) for name in profiles},
            soft_BT={name: value_B.unsqueeze(1) for name, value_B in _group(one, "soft").items()},
            unseen_item_BTS=one["unseen_item"].unsqueeze(1) if "unseen_item" in one else None,
            unseen_soft_BTS=unseen,
            spread_BT={name: value_B.unsqueeze(1) for name, value_B in _group(one, "spread").items()},
            unseen_spread_BTS=apart,
            best_item_BTK=one["best_item"].unsqueeze(1) if "best_item" in one else None,
            best_soft_BTK=best,
            best_spread_BTK=best_apart,
        )


def _columns(batch: SequenceBatch) -> Iterator[tuple[str, Tensor]]:
    sequence, place = (batch.part_BT == TRAIN).nonzero(as_tuple=True)
    events = batch.events
    by_position = {
        "item": events.item_BT,
        "time": events.time_BT,
        "row": batch.row_BT,
        **{f"label/{name}": value for name, value in events.labels_BT.items()},
        **{f"context/{name}": value for name, value in batch.context.items()},
        **{f"soft/{name}": value for name, value in batch.soft_BT.items()},
        **({} if batch.unseen_item_BTS is None else {"unseen_item": batch.unseen_item_BTS}),
        **{f"unseen_soft/{name}": value for name, value in batch.unseen_soft_BTS.items()},
        **{f"spread/{name}": value for name, value in batch.spread_BT.items()},
        **{f"unseen_spread/{name}": value for name, value in batch.unseen_spread_BTS.items()},
        **({} if batch.best_item_BTK is None else {"best_item": batch.best_item_BTK}),
        **{f"best_soft/{name}": value for name, value in batch.best_soft_BTK.items()},
        **{f"best_spread/{name}": value for name, value in batch.best_spread_BTK.items()},
    }
    by_sequence = {"user": events.user_B, **{f"user/{name}": value for name, value in events.user_features.items()}}
    for name, value in by_position.items():
        yield name, _narrow(name, value[sequence, place])
    for name, value in by_sequence.items():
        yield name, _narrow(name, value[sequence])


def _narrow(name: str, values: Tensor) -> Tensor:
    return values if values.is_floating_point() or name in _WIDE else values.int()


def _group(columns: Mapping[str, Tensor], field: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{field}/"): value for name, value in columns.items() if name.startswith(f"{field}/")}
