"""``python -m jobs``: list every job with a line each."""

from __future__ import annotations

import sys

from rayrank.entry import DONE, MISTAKE, listing, unknown_job


def main(words: list[str]) -> int:
    """The list; any other word is no job, for those are modules: ``python -m jobs.NAME``."""
    if words and words[0] not in ("-h", "--help"):
        print(unknown_job(words[0], "python -m jobs."), file=sys.stderr)
        return MISTAKE
    print(f"python -m jobs.NAME CONFIG.yaml [a.b=c …] [--show] [--help]\n\n{listing()}")
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
