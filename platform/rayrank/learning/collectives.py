"""What the loop needs of other processes, and the object for none. The distributed one lives with its launcher."""

from __future__ import annotations

from typing import Protocol, TypeVar

from torch import Tensor

T = TypeVar("T")


class Collectives(Protocol):
    """All ranks call the same methods in the same order."""

    @property
    def rank(self) -> int:
        """This process, from 0."""

    @property
    def world(self) -> int:
        """Number of processes."""

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Add up over the ranks, in place; returns the same tensor."""

    def all_gather_objects(self, value: T) -> list[T]:
        """The value of every rank, in rank order."""

    def gather_objects(self, value: T) -> list[T]:
        """The value of every rank, in rank order, on rank 0; nothing elsewhere."""

    def from_first(self, value: T) -> T:
        """Rank 0's value."""

    def barrier(self) -> None:
        """Wait until every rank is here."""


class Solo:
    """One process."""

    rank = 0
    world = 1

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The tensor as it is."""
        return tensor

    def all_gather_objects(self, value: T) -> list[T]:
        """The one value."""
        return [value]

    def gather_objects(self, value: T) -> list[T]:
        """The one value."""
        return [value]

    def from_first(self, value: T) -> T:
        """The one value."""
        return value

    def barrier(self) -> None:
        """Nobody to wait for."""
