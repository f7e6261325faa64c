"""A policy file that may be edited while it is followed.

A change is read beside the requests, within a second or so of the next one; an edit that is not valid leaves the
policy before in force and is said in every answer until it is mended.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path

from rayrank.config import ConfigError
from rayrank.ranking.flow import Terms
from rayrank.ranking.policy import ItemFacts, Policy
from rayrank.ranking.policy_spec import read_policy

POLL_S = 1.0
"""Between two looks at the file."""
_log = logging.getLogger(__name__)


class PolicyFile:
    """Follows one file.

    Raises:
        ConfigError: unreadable, invalid, or it does not fit the release.
    """

    def __init__(self, path: str | Path, facts: ItemFacts, poll_s: float = POLL_S) -> None:
        self.facts, self._path, self._poll_s = facts, Path(path), poll_s
        self._state, self.warning = _state(self._path), None  # type: tuple[int, ...] | None, str | None
        self._policy = Policy(read_policy(path), facts)
        self._next, self._reading = time.monotonic() + poll_s, threading.Lock()

    def terms(self, request_id: str) -> Terms:
        """What holds for a request that comes now; never waits for the file."""
        if time.monotonic() >= self._next and not self._reading.locked():
            self._next = time.monotonic() + self._poll_s
            if _state(self._path) != self._state:
                threading.Thread(target=self.refresh, name="policy", daemon=True).start()
        return Terms(request_id, self._policy, self.warning)

    def refresh(self) -> None:
        """Read the file if it has changed."""
        with self._reading:
            state = _state(self._path)
            if state == self._state:
                return
            self._state = state
            try:
                policy = Policy(read_policy(self._path), self.facts)
            except ConfigError as error:
                _log.error("policy %s stays: %s", self._policy.hash, error)
                self.warning = f"the policy file is not valid since its last edit; {self._policy.hash} stays in force"
                return
            if policy.hash != self._policy.hash:
                _log.warning("policy %s follows %s", policy.hash, self._policy.hash)
            self._policy, self.warning = policy, None


def _state(path: Path) -> tuple[int, ...] | None:
    """What changes whenever the file is written or replaced; None: it cannot be read."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
