"""``python -m jobs``: list every job with a line each."""

from __future__ import annotations

from rayrank.entry import listing

if __name__ == "__main__":
    print(f"python -m jobs.NAME CONFIG.yaml [a.b=c …] [--show] [--help]\n\n{listing()}")
