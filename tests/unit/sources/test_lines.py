from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayrank.sources.lines import read_range, split_lines

LINES = st.lists(st.sampled_from(["", "a", "bb", "a longer line", "é"]), max_size=30)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=LINES, end=st.sampled_from(["\n", "\r\n"]), last=st.booleans(), target=st.integers(1, 40))
def test_ranges_cover_the_file_and_count_its_lines(
    tmp_path: Path, lines: list[str], end: str, last: bool, target: int
) -> None:
    path = tmp_path / "file.txt"
    text = end.join(lines) + (end if last else "")
    path.write_bytes(text.encode())
    ranges = split_lines(str(path), target)
    pieces = [b"".join(read_range(str(path), a, b)) for a, b, _ in ranges]
    assert b"".join(pieces) == text.encode()
    assert all(piece.endswith(b"\n") for piece in pieces[:-1])
    counts = [sum(bool(line.strip()) for line in piece.decode().splitlines()) for piece in pieces]
    assert [rows for _, _, rows in ranges] == counts


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(st.sampled_from(["", " ", "\t  ", "{}", " {} "]), max_size=20),
    end=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
    target=st.integers(1, 40),
)
def test_lines_of_white_space_are_none_where_a_parser_skips_them(
    tmp_path: Path, lines: list[str], end: str, last: bool, target: int
) -> None:
    path = tmp_path / "file.jsonl"
    path.write_bytes((end.join(lines) + (end if last else "")).encode())
    ranges = split_lines(str(path), target, blanks=False)
    pieces = [b"".join(read_range(str(path), a, b)) for a, b, _ in ranges]
    assert [rows for _, _, rows in ranges] == [sum(bool(n.strip()) for n in p.splitlines()) for p in pieces]


def test_small_blocks_end_at_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(b"aaaa\nbb\ncccccccc\nd")
    assert list(read_range(str(path), 0, 18, block_bytes=6)) == [b"aaaa\n", b"bb\n", b"cccccccc\nd"]
    assert list(read_range(str(path), 5, 8)) == [b"bb\n"]
