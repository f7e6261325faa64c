"""Byte ranges of big text files, cut at line ends, so that one file is read by many tasks.

Knows nothing about what a line means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from rayrank.sources import storage

BLOCK_BYTES = 8 << 20
_NEWLINE, _RETURN = 10, 13
_BLANK = re.compile(rb"\n[ \t][ \t\r]*(?=\n)")


def split_lines(path: str, target_bytes: int, blanks: bool = True) -> list[tuple[int, int, int]]:
    """Ranges (start byte, end byte, non-empty lines) that cover a file, each ending at a line end.

    ``blanks``: lines of nothing but spaces and tabs count too (a CSV reads them as rows, a JSON parser does not).
    Reads the file once, in blocks: the line counts give every row of the source its global number.
    """
    system, inside = storage.locate(path)
    ranges: list[tuple[int, int, int]] = []
    start = position = lines = 0
    last, tail = b"\n", b""
    with system.open_input_stream(inside, compression=None) as stream:
        while block := stream.read(min(BLOCK_BYTES, max(target_bytes, 1))):
            cut = block.rfind(b"\n") + 1
            if not blanks:
                found, tail = _blank_lines(tail + block)
                lines -= found
            if position + len(block) - start >= target_bytes and cut > 0:
                lines += _count(block[:cut], last)
                ranges.append((start, position + cut, lines))
                start, lines = position + cut, _count(block[cut:], b"\n")
            else:
                lines += _count(block, last)
            position += len(block)
            last = block[-1:]
    if position > start:
        ranges.append((start, position, lines - (tail[:1] in (b" ", b"\t"))))
    return ranges


def read_range(path: str, start: int, end: int, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
    """The bytes of a range in blocks that end at line ends (the last one ends where the range ends)."""
    system, inside = storage.locate(path)
    rest = b""
    with system.open_input_file(inside) as file:
        file.seek(start)
        while start < end:
            block = file.read(min(block_bytes, end - start))
            if not block:
                break
            start += len(block)
            block = rest + block
            cut = len(block) if start >= end else block.rfind(b"\n") + 1
            rest = block[cut:]
            if cut:
                yield block[:cut]
    if rest:
        yield rest


def _blank_lines(text: bytes) -> tuple[int, bytes]:
    """Whole lines of nothing but spaces and tabs, and the unfinished line at the end (if it is another, a mark)."""
    cut = text.rfind(b"\n") + 1
    rest = text[cut:]
    return len(_BLANK.findall(b"\n" + text[:cut])), b"x" if rest.strip(b" \t\r") else rest


def _count(block: bytes, before: bytes) -> int:
    """Lines that begin in ``block`` and are not empty; ``before`` is the byte that precedes it."""
    data = np.frombuffer(before + block, dtype=np.uint8)
    return int(((data[:-1] == _NEWLINE) & (data[1:] != _NEWLINE) & (data[1:] != _RETURN)).sum())
