"""A little MovieLens in the published layout, made by the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

RATINGS = """\
1::10::5::1000000100
1::20::3::1000000100
1::30::4::1000000050
2::10::4::1000000300
2::40::1::1000000200
3::20::2::1000000070
3::10::5::1000000060
3::30::4::1000000090
3::40::4::1000000080
"""


@pytest.fixture
def movielens(tmp_path: Path) -> Path:
    """Three users, four films; film 40 has no extra row, film 30 no director and no year."""
    folder = tmp_path / "ml"
    folder.mkdir()
    (folder / "ratings.dat").write_text(RATINGS)
    (folder / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n3::M::25::15::55117\n4::F::25::1::1\n")
    films = "10::Amélie (2001)::Comedy|Romance\n20::Heat (1995)::Crime\n30::No Year::Drama\n40::Up (2009)::Comedy\n"
    (folder / "movies.dat").write_bytes(films.encode("iso-8859-1"))
    extra = [
        "10::Amélie::2001::R::x::Comedy::Jean-Pierre Jeunet::W::Audrey Tautou::A waitress.::poster",
        "20::Heat::1995::R::x::Crime::Michael Mann::W::N/A::A heist::poster",
        "30::No Year::N/A::R::x::Drama::N/A::N/A::Someone::N/A::poster",
    ]
    (folder / "movies_extrainfos.dat").write_bytes("\r\n".join(extra).encode() + b"\r\n")
    return folder
