"""What another policy would change, inside an ingress replica: each request under both policies. Changes nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from rayrank.config import ConfigError, parse
from rayrank.messages import DryRunAnswer, DryRunRequest, DryRunResponse, ErrorField
from rayrank.on_ray.aside import Aside
from rayrank.on_ray.pool import Gate
from rayrank.ranking.drive import Driver
from rayrank.ranking.flow import FlowParts, StageError, Terms, rank_flow
from rayrank.ranking.graph import RequestError
from rayrank.ranking.policy import ItemFacts, Policy
from rayrank.ranking.policy_file import PolicyFile
from rayrank.ranking.policy_spec import PolicySpec
from rayrank.ranking.respond import Named, difference

_WAIT_S = 30.0
"""Longest dry run, seconds: laying a policy over a large catalogue takes a few, each request twice its stages' time."""


class DryRuns:
    """Runs requests under the policy in force and under one that is tried; one call at a time."""

    def __init__(self, driver: Driver, parts: FlowParts, named: Named, policy: PolicyFile | None) -> None:
        self._driver, self._parts, self._named, self._policy = driver, parts, named, policy
        self._gate, self._aside = Gate(1), Aside("dry run", 1, _WAIT_S)

    async def run(self, asked: DryRunRequest, request_id: str) -> DryRunResponse:
        """Both orders of each request.

        Raises:
            BusyError: another dry run is at it.
            RequestError: no policy file is followed, or the other policy is not valid.
            StageError: it takes too long.
        """
        if self._policy is None:
            raise RequestError([ErrorField(field="policy", problem="the service follows no policy file")])
        with self._gate:
            try:
                async with asyncio.timeout(_WAIT_S):
                    return await self._answer(asked, request_id, self._policy)
            except ConfigError as error:
                field = ErrorField(field=error.path.replace(": ", "."), problem=f"{error.rule}; fix: {error.fix}")
                raise RequestError([field]) from None
            except TimeoutError:
                raise StageError(f"dry run: no answer within {_WAIT_S:g} s") from None

    async def _answer(self, asked: DryRunRequest, request_id: str, policy: PolicyFile) -> DryRunResponse:
        tried: Policy = await self._aside.run(_laid, asked.policy, policy.facts)
        now = policy.terms(request_id)
        assert now.policy is not None
        answers = list[DryRunAnswer]()
        for request in asked.requests:
            orders = []
            for terms in (now, Terms(request_id, tried)):
                flow = rank_flow(request, self._parts, terms)
                orders.append((await self._driver.run(flow, request_id, request.timeout_ms))[0])
            answers.append(difference(request, orders[0], orders[1], self._named))
        return DryRunResponse(before=now.policy.hash, after=tried.hash, answers=answers)


def _laid(raw: dict[str, Any], facts: ItemFacts) -> Policy:
    return Policy(parse(PolicySpec, raw, "policy"), facts)
