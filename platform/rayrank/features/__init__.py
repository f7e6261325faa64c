"""Feature functions shared by ``prepare`` and by online requests: fit, encode, text, clock."""

from __future__ import annotations
