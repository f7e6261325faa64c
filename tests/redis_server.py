"""A real Redis server for the time of a test."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.ports import free_port

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


def need_redis() -> None:
    """Skip the test where server or client are missing."""
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server on this machine (Debian: apt-get install redis-server)")
    pytest.importorskip("redis", reason="the extra 'redis' is not installed")


class running:  # noqa: N801
    """A server on a free port for the time of a block."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        self.command += ["--save", "", *options]

    def __enter__(self) -> tuple[str, running]:
        self.start()
        return f"redis://127.0.0.1:{self.port}/0", self

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise AssertionError("the server did not start")

    def stop(self, how: int = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait(20)

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()
