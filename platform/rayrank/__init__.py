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

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayrank.ranking.handle import RankerHandle

__version__ = "0.1.0"

# torch looks at it before its first large tensor. Tensors of 2 MB and more lie in huge pages then, if Linux has them:
# no slower, and without the gaps that left a labelling process of 300 MB at 750.
if os.path.exists("/sys/kernel/mm/transparent_hugepage"):
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# pyarrow looks at it when it is imported. What its own allocator was given, it keeps (54 to 70 MB of every process that
# reads shards); what the C library was given, rayrank.memory gives back.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


def load(bundle: str) -> RankerHandle:
    """Open a bundle for ranking in plain Python, without Ray; see :class:`rayrank.ranking.handle.RankerHandle`."""
    from rayrank.ranking.handle import open_ranker

    return open_ranker(bundle)
