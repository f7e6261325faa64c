"""How long `/v1/rank` takes over HTTP through HAProxy (throughput mode) and through Serve's stock proxy.

Both graphs serve the same release at the same time, each on a Ray of its own; the same requests are sent to one and
the other in turn, one at a time, and which goes first alternates. So whatever else the machine does meets both.

    python -m benchmarks.serving_profile [--releases runs/quickstart/releases] [--requests 400]
    python -m benchmarks.serving_profile --quick      80 requests
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rayrank.pipeline.probe import ask

ROOT = Path(__file__).resolve().parents[1]
ARMS = ("haproxy", "stock")
START_S, WARM_UP, CANDIDATES = 300.0, 20, 100


@contextmanager
def served(releases: str, profile: str, log: Path) -> Iterator[str]:
    """The graph of a release under one profile, healthy; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "jobs.serve", str(ROOT / "jobs" / "configs" / "serve.yaml")]
    command += [f"releases={releases}", "playground=null", f"http.profile={profile}", f"http.port={port}"]
    command += [f"http.wait_s={START_S:.0f}", *(f"budgets.{stage}=10" for stage in ("retrieve", "student", "teacher"))]
    with log.open("w") as file:
        job = subprocess.Popen(command, stdout=file, stderr=file, env=dict(os.environ))
    try:
        end = time.monotonic() + START_S
        while "is up at" not in log.read_text():
            if job.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{profile} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        job.send_signal(signal.SIGINT)
        try:
            job.wait(90)
        except subprocess.TimeoutExpired:
            job.kill()


def bodies(url: str, count: int) -> list[dict[str, Any]]:
    """Requests of known users over the same candidates."""
    users = ask(url, "/v1/release")["example_users"]
    hits = ask(url, "/v1/recommend", {"k": CANDIDATES})["items"]
    candidates = [item["item_id"] for item in hits]
    return [{"user_id": users[i % len(users)], "candidates": candidates} for i in range(count)]


def compare(urls: dict[str, str], requests: int) -> dict[str, list[float]]:
    """Milliseconds of every request, by arm."""
    found: dict[str, list[float]] = {arm: [] for arm in urls}
    for number, body in enumerate(bodies(next(iter(urls.values())), requests + WARM_UP)):
        order = list(urls) if number % 2 else list(reversed(urls))
        for arm in order:
            began = time.perf_counter()
            answer = ask(urls[arm], "/v1/rank", body)
            if number >= WARM_UP:
                found[arm].append((time.perf_counter() - began) * 1000)
            if answer["degraded"]:
                raise RuntimeError(f"{arm}: {answer['degraded']}")
    return found


def main() -> None:
    """Print the table and, last, one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--releases", default="runs/quickstart/releases")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        place = str(Path(options.releases).resolve())
        urls = {arm: stack.enter_context(served(place, arm, Path(folder) / arm)) for arm in ARMS}
        found = compare(urls, 80 if options.quick else options.requests)
    line: dict[str, float] = {}
    for arm, times in found.items():
        p50, p95 = statistics.median(times), sorted(times)[int(0.95 * len(times))]
        print(f"{arm:<8} p50 {p50:6.1f} ms   p95 {p95:6.1f} ms   {len(times)} requests of {CANDIDATES} candidates")
        line |= {f"rank_p50_ms_{arm}": round(p50, 2), f"rank_p95_ms_{arm}": round(p95, 2)}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
