"""Numbers of things in words for people."""

from __future__ import annotations

import difflib
from collections.abc import Collection

MAX_WORDS = 16
"""Words of a query: each is looked for in every title."""
_MOST = 2000
"""Names that are compared at most: looking for a near one takes about 10 µs each."""


def counted(number: int, noun: str, ending: str = "s") -> str:
    """``1 file``, ``0 files``, ``1,234 files``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}{ending}"


def meant(name: str, known: Collection[str]) -> str:
    """``" (did you mean 'like'?)"``, or nothing where no known name is near."""
    near = difflib.get_close_matches(name[:100], known, n=1) if len(known) <= _MOST else []
    return f" (did you mean '{near[0]}'?)" if near else ""


def near_id(given: str, known: Collection[str]) -> str:
    """The same for ids, of which there may be millions: only slips of case, spaces and leading zeros are tried."""
    bare = given.strip()
    head = bare.rstrip("0123456789")
    number = bare[len(head) :].lstrip("0")
    tries = (bare, bare.lower(), bare.upper(), head + number, head.lower() + number)
    found = next((t for t in tries if t != given and t in known), None)
    return f" (did you mean '{found}'?)" if found is not None else ""


def few_words(query: str) -> str:
    """The query.

    Raises:
        ValueError: it has more than :data:`MAX_WORDS` words.
    """
    if len(query.split()) > MAX_WORDS:
        raise ValueError(f"must have at most {MAX_WORDS} words")
    return query
