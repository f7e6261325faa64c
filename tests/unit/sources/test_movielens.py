from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from rayrank.config import ConfigError
from rayrank.features.text import item_text
from rayrank.sources.movielens import MovieLens, MovieLensConfig


def _source(folder: Path, **options: object) -> MovieLens:
    return MovieLens(MovieLensConfig(path=str(folder), **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("part_bytes", [1, 20, 10_000])
def test_parts_cover_every_rating_once_in_file_order(movielens: Path, part_bytes: int) -> None:
    source = _source(movielens, part_bytes=part_bytes)
    parts = source.parts()
    assert sum(p.rows for p in parts) == 9
    assert (len(parts) > 1) == (part_bytes < 100)
    table = pa.concat_tables([t for p in parts for t in source.read(p)])
    assert table["row"].to_pylist() == list(range(9))
    assert table["user_id"].to_pylist() == ["1", "1", "1", "2", "2", "3", "3", "3", "3"]
    assert table["timestamp"].to_pylist()[:3] == [1_000_000_100, 1_000_000_100, 1_000_000_050]
    assert table["label_like"].to_pylist() == [1, 0, 1, 1, 0, 0, 1, 1, 1]
    assert table["label_rating"].to_pylist() == [5, 3, 4, 4, 1, 2, 5, 4, 4]


def test_items_join_both_files_and_their_encodings(movielens: Path) -> None:
    source = _source(movielens)
    rows = source.items().to_pylist()
    assert rows[0]["title"] == "Amélie (2001)"
    assert (rows[0]["year"], rows[0]["decade"]) == ("2001", "2000")
    assert (rows[2]["year"], rows[2]["decade"], rows[2]["director"]) == (None, None, None)
    assert [item_text(source.schema, r) for r in rows] == [
        "Amélie (2001). Comedy, Romance. Directed by Jean-Pierre Jeunet. Audrey Tautou. A waitress.",
        "Heat (1995). Crime. Directed by Michael Mann. A heist",
        "No Year. Drama. Someone.",
        "Up (2009). Comedy.",
    ]


def test_extra_information_is_optional(movielens: Path) -> None:
    (movielens / "movies_extrainfos.dat").unlink()
    assert _source(movielens).items()["plot"].null_count == 4


@pytest.mark.parametrize(
    ("file", "content", "rule"),
    [
        ("users.dat", b"1::F::1\n", "5 '::' fields, this has 3"),
        ("movies.dat", None, "needs ratings.dat, users.dat and movies.dat"),
        ("ratings.dat", b"1::10::five::100\n", "user::item::rating::timestamp"),
        ("ratings.dat", b"1,10,5,100\n", "user::item::rating::timestamp"),
        ("movies_extrainfos.dat", b"10::Am\xe9lie\n", "must be utf-8"),
    ],
)
def test_broken_files_are_named_with_the_rule(movielens: Path, file: str, content: bytes | None, rule: str) -> None:
    path = movielens / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    source = _source(movielens)
    with pytest.raises(ConfigError, match=rule) as caught:
        source.users(), source.items(), [t for p in source.parts() for t in source.read(p)]
    assert file in caught.value.path
    assert caught.value.fix


def test_the_schema_names_its_split(movielens: Path) -> None:
    assert _source(movielens).schema.name == "ml1m-user"
    assert _source(movielens, split={"kind": "time"}).schema.name == "ml1m-time"
