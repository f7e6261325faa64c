"""What was shown to whom: every answer as a line of JSON, written by a thread beside the requests.

``sources.served`` reads the lines; the ``export_served`` job makes impressions of them. Knows requests and responses;
knows nothing about how they were made.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import Field

from rayrank.config import Config, ConfigError, DataPath
from rayrank.messages import RankRequest, RankResponse, RecommendRequest
from rayrank.ranking import durable
from rayrank.ranking.flow import Ranked

_log = logging.getLogger(__name__)


class ServedLogSpec(Config):
    """Where answers are written down."""

    path: DataPath = Field(description="folder; each ingress replica appends to files of its own")
    sample: float = Field(1.0, gt=0, le=1, description="share of the users whose answers are written, by a hash")
    flush_s: float = Field(1.0, gt=0, le=60, description="longest time until a line is on disk, seconds")
    waiting: int = Field(10_000, ge=1, description="answers that may wait to be written; more are dropped and counted")
    waiting_items: int = Field(
        200_000,
        ge=1,
        description="items of answers that may wait to be written, about 2 KB each; more are dropped and counted",
    )
    file_mb: int = Field(64, ge=1, description="a file that is larger is followed by a new one")


@dataclass(frozen=True)
class Shown:
    """One answer, as it goes to the log; of the request only what is written, since it may hold a lot more."""

    user_id: str | None
    context: Mapping[str, Any]
    response: RankResponse
    time: int  # unix seconds of the request
    history_until: int | None = None  # unix seconds of the latest event that the models saw


def shown_of(request: RankRequest | RecommendRequest, ranked: Ranked, response: RankResponse, now: int) -> Shown:
    """What an answer showed; ``now`` (unix seconds) counts where the request has no time."""
    time = now if request.time is None else request.time
    return Shown(request.user_id, request.context, response, time, ranked.history_until)


class ServedLog:
    """Appends answers; lines are on disk after ``flush_s``. What cannot be written is dropped and counted.

    Raises:
        ConfigError: the folder cannot be written.
    """

    def __init__(self, spec: ServedLogSpec) -> None:
        self.spec, self.written, self.dropped = spec, 0, 0
        self._folder, self._said = Path(spec.path), 0
        self._file: Path | None = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            probe = self._folder / f".{uuid4().hex}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            rule = f"the folder of the served log must be writable ({type(error).__name__})"
            raise ConfigError("served_log.path", spec.path, rule, "choose another folder") from None
        self._waiting: queue.Queue[Shown] = queue.Queue(spec.waiting)
        self._items, self._counting = 0, threading.Lock()  # of answers that wait or are being written
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._run, name="served-log", daemon=True)
        self._thread.start()

    def note(self, shown: Shown) -> None:
        """Write it down soon; never waits."""
        whose = shown.user_id or shown.response.request_id
        if self.spec.sample < 1 and zlib.crc32(whose.encode()) >= self.spec.sample * 2**32:
            return
        with self._counting:
            try:
                if self._items >= self.spec.waiting_items:
                    raise queue.Full
                self._waiting.put_nowait(shown)
                self._items += len(shown.response.items)
            except queue.Full:
                self.dropped += 1

    def close(self, wait_s: float = 10.0) -> None:
        """Write what waits, then end the thread."""
        self._stop.set()
        self._thread.join(wait_s)
        self.flush()

    def flush(self) -> None:
        """Write what waits now."""
        with self._lock:
            found = [self._waiting.get_nowait() for _ in range(self._waiting.qsize())]
            if not found and self.dropped == self._said:
                return
            dropped = self.dropped
            lines = [_line(shown) for shown in found]
            if dropped > self._said:
                lines.append(json.dumps({"dropped": dropped - self._said}))
            try:
                self._append("".join(f"{line}\n" for line in lines))
            except OSError as error:
                with self._counting:
                    self.dropped += len(found)
                _log.error("served log %s: %s; %s answers not written", self._folder, error.strerror, len(found))
                return
            finally:
                with self._counting:  # only now: while a disk hangs these are held too
                    self._items -= sum(len(shown.response.items) for shown in found)
            self.written, self._said = self.written + len(found), dropped

    def _run(self) -> None:
        while not self._stop.wait(self.spec.flush_s):
            self.flush()

    def _append(self, text: str) -> None:
        """A torn line, left by a full disk, ends its file, so that nothing is ever written behind it."""
        if self._file is None:
            stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
            self._file = self._folder / f"served-{stamp}-{uuid4().hex[:12]}.jsonl"
        path = self._file
        self._file = None
        with path.open("ab") as file:
            file.write(said := text.encode())
            file.flush()
            os.fsync(file.fileno())
            if file.tell() == len(said):  # new: without its name on disk the lines are not either
                durable.flush_folder(self._folder)
            if file.tell() < self.spec.file_mb * 2**20:
                self._file = path


def _line(shown: Shown) -> str:
    response = shown.response
    said = {
        "request_id": response.request_id,
        "user_id": shown.user_id,
        "time": shown.time,
        "items": [item.item_id for item in response.items],
        "scores": [round(item.score, 6) for item in response.items],
        "propensity": [float(f"{item.propensity:.6g}") for item in response.items],  # learning divides by it
        "context": dict(shown.context),
        "release_id": response.release_id,
        "policy": response.policy,
        "answered_by": response.answered_by,
        "history_until": shown.history_until,
    }
    return json.dumps(said, separators=(",", ":"))
