"""What another policy would change, inside an ingress replica: each request under both policies. Changes nothing."""

from __future__ import annotations

import asyncio

from rayrank.config import ConfigError, parse
from rayrank.messages import DryRunAnswer, DryRunRequest, DryRunResponse, ErrorField
from rayrank.ranking.drive import Driver
from rayrank.ranking.flow import FlowParts, Terms, rank_flow
from rayrank.ranking.graph import RequestError
from rayrank.ranking.policy import Policy
from rayrank.ranking.policy_file import PolicyFile
from rayrank.ranking.policy_spec import PolicySpec
from rayrank.ranking.respond import Named, difference


class DryRuns:
    """Runs requests under the policy in force and under one that is tried."""

    def __init__(self, driver: Driver, parts: FlowParts, named: Named, policy: PolicyFile | None) -> None:
        self._driver, self._parts, self._named, self._policy = driver, parts, named, policy

    async def run(self, asked: DryRunRequest, request_id: str) -> DryRunResponse:
        """Both orders of each request.

        Raises:
            RequestError: no policy file is followed, or the other policy is not valid.
        """
        if self._policy is None:
            raise RequestError([ErrorField(field="policy", problem="the service follows no policy file")])
        try:
            spec = parse(PolicySpec, asked.policy, "policy")
            tried = await asyncio.to_thread(Policy, spec, self._policy.facts)
        except ConfigError as error:
            field = ErrorField(field=error.path.replace(": ", "."), problem=f"{error.rule}; fix: {error.fix}")
            raise RequestError([field]) from None
        now = self._policy.terms(request_id)
        assert now.policy is not None
        answers = list[DryRunAnswer]()
        for request in asked.requests:
            orders = []
            for terms in (now, Terms(request_id, tried)):
                orders.append((await self._driver.run(rank_flow(request, self._parts, terms), request_id))[0])
            answers.append(difference(request, orders[0], orders[1], self._named))
        return DryRunResponse(before=now.policy.hash, after=tried.hash, answers=answers)
