"""``python -m jobs``: list every job with a line each; ``python -m jobs NAME …`` is ``python -m jobs.NAME …``."""

from __future__ import annotations

import sys

from rayrank.__main__ import dispatch

if __name__ == "__main__":
    sys.exit(dispatch(sys.argv[1:], "python -m jobs"))
