"""Memory that was freed, given back to the operating system."""

from __future__ import annotations

import ctypes
from functools import lru_cache


def release() -> None:
    """Give freed memory back, after something large: C allocators keep it otherwise, and the next stage adds its own.

    Milliseconds; nothing where the C library has no ``malloc_trim`` (only glibc does).
    """
    if (trim := _malloc_trim()) is not None:
        trim(0)


@lru_cache(1)
def _malloc_trim() -> ctypes._NamedFuncPointer | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
