"""A bearer token in front of the HTTP routes: one secret, in a file that only the service and its operators read.

The token is never in a config, a log or an answer. Knows headers and OpenAPI; knows nothing about ranking.
"""

from __future__ import annotations

import hmac
import re
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request

from rayrank.config import ConfigError

CHALLENGE = {"www-authenticate": "Bearer"}
_OPEN = {"/", "/v1/health"}
"""Asked by balancers, and the page, which holds no data and asks for the token."""


def read_token(path: str | None) -> str | None:
    """The token in a file, without the space around it; None without a file.

    Raises:
        ConfigError: it cannot be read, or holds no token.
    """
    if path is None:
        return None
    try:
        token = Path(path).read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        rule = f"must be a readable text file ({type(error).__name__})"
        raise ConfigError("token_file", path, rule, "correct the path, or token_file=null") from None
    if not re.fullmatch(r"[\x21-\x7e]{16,1024}", token):
        rule = "must hold one token: 16 to 1024 characters without spaces"
        raise ConfigError("token_file", path, rule, f"openssl rand -hex 32 > {path}")
    return token


def allowed(request: Request, token: str) -> bool:
    """Whether the request carries the token, or needs none."""
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    if request.method in ("GET", "HEAD") and path in _OPEN:
        return True
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), token.encode())


def declare(api: FastAPI, error: dict[str, Any]) -> None:
    """Say in the OpenAPI document that the routes need a token; ``error``: what a 401 looks like there."""
    plain = api.openapi

    def openapi() -> dict[str, Any]:
        schema = plain()
        if "security" in schema:
            return schema
        schema["security"] = [{"token": []}]
        schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                if path in _OPEN:
                    operation["security"] = []
                else:
                    operation["responses"]["401"] = error
        return schema

    api.openapi = openapi  # type: ignore[method-assign]
