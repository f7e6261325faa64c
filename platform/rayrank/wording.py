"""Numbers of things in words for people."""

from __future__ import annotations


def counted(number: int, noun: str, ending: str = "s") -> str:
    """``1 file``, ``0 files``, ``1,234 files``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}{ending}"
