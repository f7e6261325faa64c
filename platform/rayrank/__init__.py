"""rayrank: train, distil and serve multi-task rankers on Ray.

Floors (imports go downwards only; import-linter checks it in CI):

* F0 vocabulary: ``config`` ``mistakes`` ``locations`` ``schema`` ``messages``
* F1 pure pieces: ``batch`` ``features`` ``models`` ``objectives`` ``metrics`` (numpy, torch; no files, no ray)
* F2 core: ``sources`` ``learning`` ``compression`` ``bundle`` ``ranking`` (files; no ray, no mlflow)
* F3 adapters: ``on_ray`` (the only importer of ray), ``tracking`` (the only importer of mlflow)
* F4 use cases: ``pipeline``, one function per job
* F5 entry points: ``jobs``, ``serve_apps``, ``rayrank.entry``, ``rayrank.__main__``
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayrank.ranking.handle import RankerHandle

__version__ = "0.1.0"


def load(bundle: str) -> RankerHandle:
    """Open a bundle for ranking in plain Python, without Ray; see :class:`rayrank.ranking.handle.RankerHandle`."""
    from rayrank.ranking.handle import open_ranker

    return open_ranker(bundle)
