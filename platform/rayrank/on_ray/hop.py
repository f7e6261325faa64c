"""One hop from the ingress to a stage: to another replica where the first one dies over it."""

from __future__ import annotations

import asyncio
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle


async def hop(handle: DeploymentHandle, *arguments: Any) -> Any:
    """What a replica says; where it dies over it, what another one says, once.

    Events of a replica that died after it had kept them are known again by their request, and count once.
    """
    try:
        return await _asked(handle, arguments)
    except RayActorError:
        return await _asked(handle, arguments)


async def _asked(handle: DeploymentHandle, arguments: tuple[Any, ...]) -> Any:
    response = handle.remote(*arguments)
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()  # out of time: do not let the stage work for nobody
        raise
