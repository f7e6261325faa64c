"""A policy file that may be edited while it is followed.

A thread beside the requests reads a change within two seconds or so, once the file stays as it is: it may be written in
place. An edit that is not valid leaves the policy before in force and is said in every answer until it is mended.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from pathlib import Path

from rayrank.config import ConfigError
from rayrank.ranking.flow import Terms
from rayrank.ranking.growth import Fresh, Receiver
from rayrank.ranking.policy import ItemFacts, Policy
from rayrank.ranking.policy_spec import read_policy
from rayrank.ranking.scorer import Scorer

POLL_S = 1.0
"""Between two looks at the file; one that has changed is read when it is the same in two of them."""
_log = logging.getLogger(__name__)


class PolicyFile:
    """Follows one file.

    Raises:
        ConfigError: unreadable, invalid, or it does not fit the release.
    """

    def __init__(self, path: str | Path, facts: ItemFacts, poll_s: float = POLL_S) -> None:
        self.facts, self._path, self._reading = facts, Path(path), threading.Lock()
        self._poll_s, self._state = poll_s, _state(self._path)
        self._policy = Policy(read_policy(path), facts)
        self.warning: str | None = None
        self.reason: str | None = None  # of the warning, for whoever edits the file
        threading.Thread(target=_follow, args=(weakref.ref(self), poll_s), name="policy", daemon=True).start()

    def terms(self, key: str) -> Terms:
        """What holds for a request that comes now; never waits for the file."""
        return Terms(key, self._policy, self.warning)

    def told(self) -> dict[str, str | None]:
        """Fields of a release's info. Whoever asks for health may see all but the reason, which quotes the file."""
        warning = self.warning
        reason = self.reason if warning else None
        return {"policy": self._policy.hash, "policy_warning": warning, "policy_reason": reason}

    def follows(self, scorer: Scorer) -> Receiver:
        """Lays the policy over a catalogue with items that were put; ``scorer`` and the names know them before."""

        def receive(fresh: Fresh) -> None:
            if len(fresh.cold):
                with self._reading:
                    self.facts = self.facts.grown(fresh, scorer)
                    self._policy = Policy(self._policy.spec, self.facts)

        return receive

    def refresh(self) -> None:
        """Read the file if it has changed; not while it is being written, of which half may be a valid policy too."""
        state = _state(self._path)
        if state == self._state:
            return
        time.sleep(self._poll_s)
        with self._reading:
            if _state(self._path) != state or state == self._state:
                return
            policy, reason = self._read()
            if _state(self._path) != state:
                return  # the next look sees it
            self._state = state
            if policy is None:
                self.reason = reason
                _log.error("policy %s stays: %s", self._policy.hash, reason)
                self.warning = f"the policy file is not valid since its last edit; {self._policy.hash} stays in force"
                return
            if policy.hash != self._policy.hash:
                _log.warning("policy %s follows %s", policy.hash, self._policy.hash)
            self._policy, self.warning, self.reason = policy, None, None

    def _read(self) -> tuple[Policy | None, str | None]:
        """The policy that the file holds, or what is wrong with it."""
        try:
            return Policy(read_policy(self._path), self.facts), None
        except Exception as error:  # whatever it is, the thread must live to see the edit that mends it
            return None, str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"


def _follow(reference: weakref.ref[PolicyFile], poll_s: float) -> None:
    while (followed := reference()) is not None:
        followed.refresh()
        del followed
        time.sleep(poll_s)


def _state(path: Path) -> tuple[int, ...] | None:
    """What changes whenever the file is written or replaced; None: it cannot be read."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
