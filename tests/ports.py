"""Ports for servers that tests start."""

from __future__ import annotations

import random
import socket

FIRST, LAST = 20_000, 29_999
"""Above those of Ray's workers, below those of Serve's replicas and those that Linux gives to whoever asks for any."""

_promised: list[socket.socket] = []


def free_port() -> int:
    """A port that nobody listens on, and that no test gets again while this process lives (Linux).

    The kernel's choice would be in the range that every outgoing connection is taken from: what is free now may be
    taken before a server that starts slowly, like Ray's agents, has opened it.
    """
    for port in random.sample(range(FIRST, LAST + 1), 200):
        promise = socket.socket(socket.AF_UNIX)
        try:
            promise.bind(f"\0rayrank-test-port-{port}")
            with socket.socket() as probe:
                probe.bind(("", port))
        except OSError:
            promise.close()
            continue
        _promised.append(promise)
        return port
    raise AssertionError(f"no free port among 200 between {FIRST} and {LAST}")
