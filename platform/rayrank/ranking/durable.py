"""Files that are whole and on disk under their names, or not there: flushed, renamed, and the name flushed too."""

from __future__ import annotations

import os
from pathlib import Path


def put(temporary: Path, target: Path) -> None:
    """Give a complete file of the same folder its name, in place of what had it; on disk when this returns."""
    _flush(temporary)
    os.replace(temporary, target)
    flush_folder(target.parent)


def flush_folder(folder: Path) -> None:
    """The names in it are on disk when this returns: those of new files are not, though what is in the files may be."""
    _flush(folder)


def _flush(place: Path) -> None:
    opened = os.open(place, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
