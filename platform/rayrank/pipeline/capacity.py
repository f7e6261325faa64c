"""How many replicas a rate of requests needs, from what each stage computes for one request.

A replica computes on one thread, so its stage is a queue: with processor time c a request, rate R over n replicas and
arrivals at random, the share of requests that spend more than t there is at most about exp(−(1/c − R/n)·t) (M/M/1,
Kleinrock, Queueing Systems, vol. 1, 1975; a service time that varies less waits less). The budget is dealt to the
stages in proportion to c, which gives all of them the same highest utilisation. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field

from rayrank.config import Config


class CapacitySpec(Config):
    """What the service shall bear."""

    rate: float = Field(100.0, gt=0, description="requests a second")
    budget_ms: float = Field(500.0, gt=0, description="time that `share` of the requests must be answered within")
    share: float = Field(0.99, gt=0, lt=1, description="share of the requests that must stay within budget_ms")
    ceiling: float = Field(0.7, gt=0, le=1, description="highest utilisation of a replica, whatever the budget allows")


@dataclass(frozen=True)
class Plan:
    """What is needed."""

    utilisation: float  # highest that keeps the budget and the ceiling; 0: no number of replicas does
    replicas: Mapping[str, int]  # stage -> processes
    cores: float  # processor time a second of all stages together

    @property
    def feasible(self) -> bool:
        """Whether any number of replicas keeps the budget."""
        return self.utilisation > 0


def highest_utilisation(cpu_s: Mapping[str, float], spec: CapacitySpec) -> float:
    """min(ceiling, 1 − ln(1 / (1 − share)) · Σc / budget), not below 0.

    Stage s may take budget · c_s / Σc, so 1/c_s − R/n_s ≥ ln(1 / (1 − share)) · Σc / (budget · c_s): multiplied by
    c_s, the same bound on R·c_s/n_s for every stage.
    """
    needed = math.log(1 / (1 - spec.share)) * sum(cpu_s.values()) / (spec.budget_ms / 1000)
    return max(0.0, min(spec.ceiling, 1 - needed))


def plan(cpu_s: Mapping[str, float], spec: CapacitySpec) -> Plan:
    """Replicas by stage: ⌈rate · c / utilisation⌉, at least one each."""
    top = highest_utilisation(cpu_s, spec)
    needed = {stage: spec.rate * c for stage, c in cpu_s.items()}
    replicas = {stage: max(1, math.ceil(busy / top - 1e-9)) for stage, busy in needed.items()} if top else {}
    return Plan(top, replicas, sum(needed.values()))
