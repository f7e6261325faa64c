"""How fast the ranking graph answers beside other ways to serve the same models, and what it does in trouble.

Both arms of every claim run in one session, in turn, a few seconds each; equal answers are asserted first. Clients are
closed-loop with keep-alive, in a process of their own, 1, 8 and 32 of them. The release is generated (300,000 items,
500 candidates, 50 shown; see ``release``). A section is measured, and kept, by itself.

    python -m benchmarks.serving [--sections hops,graph,batching,profile,fastapi,litserve,memory,degradation,…]
    python -m benchmarks.serving --quick      3,000 items, short slices; nothing is kept
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.results import ROOT, Row, Table
from benchmarks.serving import memory, sections
from benchmarks.serving.batching import batching
from benchmarks.serving.degradation import degradation, ndcg_lost
from benchmarks.serving.load import open_loop_table
from benchmarks.serving.measure import Finding
from benchmarks.serving.release import world
from benchmarks.serving.sections import Bench

NAME, VERSION = "serving", 1
TABLE = Table(
    title="Serving",
    command="python -m benchmarks.serving",
    note=(
        "Both arms in one session and in turn, equal answers asserted, medians over rounds and their range. Only whole "
        "answers count, none that lacks a stage. rank: 500 "
        "given candidates, student only, 50 shown; graph: 300,000 items, 500 retrieved, the best 50 scored by the "
        "teacher (two causal layers and attention over the events; no text). Random weights. taxes: (p50 served − p50 "
        "in process) ÷ p50 of a request that does nothing behind the same ingress. Load: average over the last minute."
    ),
    labels=("claim", "case"),
    columns=("value", "least", "most", "load"),
)
Section = Callable[[Bench], list[Finding]]
SMALL_IS_GOOD = ("tax", "growth", "lost", "errors", "ms", "after_s", "refused")
"""Endings of claims whose worst case is the largest; of all others it is the smallest."""


def sections_of(releases: str | None) -> dict[str, Section]:
    """What can be measured by itself."""
    return {
        "hops": sections.taxes_of_a_hop,
        "graph": sections.graph_and_forms,
        "batching": batching,
        "profile": sections.profiles,
        "fastapi": sections.against_fastapi,
        "litserve": sections.against_litserve,
        "memory": memory.rss_growth,
        "degradation": degradation,
        "open_loop": open_loop_table,
        "ndcg": partial(ndcg_lost, releases=releases),
    }


def rows_of(found: Sequence[Finding], items: int) -> list[Row]:
    """Rows of the results table."""
    return [
        Row(
            key=results.key_of(NAME, VERSION, items, f.claim, f.case), table=NAME, arm=(f.claim, f.case),
            values={"value": f.value, "least": min(f.values), "most": max(f.values), "load": f.load},
            **results.stamp(),
        )
        for f in found
        if math.isfinite(f.value)
    ]  # fmt: skip


def claims_of(found: Sequence[Finding]) -> dict[str, Any]:
    """The worst case of each claim, and all cases; null where there is no number (what never happened)."""

    def told(value: float) -> float | None:
        return round(value, 4) if math.isfinite(value) else None

    names = list(dict.fromkeys(f.claim for f in found))
    values = {name: [f.value for f in found if f.claim == name] for name in names}
    worst = {name: (max if name.endswith(SMALL_IS_GOOD) else min)(values[name]) for name in names}
    cases = {f"{f.claim}: {f.case}": told(f.value) for f in found}
    return {name: told(value) for name, value in worst.items()} | {"cases": cases}


def main() -> None:
    """Measure, keep the rows, print the claims."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small and short; nothing is kept")
    parser.add_argument("--sections", default=",".join(sections_of(None)))
    parser.add_argument("--items", type=int, help="items of the catalogue (300,000; quick: 3,000)")
    parser.add_argument("--folder", default=str(ROOT / "runs" / "benchmarks" / "serving"), help="where it is kept")
    parser.add_argument("--releases", default=str(ROOT / "runs" / "quickstart" / "releases"), help="trained, for ndcg")
    options = parser.parse_args()
    known, names = sections_of(options.releases), options.sections.split(",")
    if unknown := set(names) - set(known):
        parser.error(f"--sections {','.join(sorted(unknown))}: sections are {', '.join(known)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended, too
    os.environ["OMP_NUM_THREADS"] = "1"
    items = options.items or (3_000 if options.quick else 300_000)
    made, found = world(Path(options.folder), items), list[Finding]()
    with tempfile.TemporaryDirectory(prefix="rayrank-serving-") as folder:
        bench = Bench(made, Path(folder), options.quick, _say)
        for name in names:
            measured = known[name](bench)
            found += measured
            for finding in measured:
                _say(f"{name}: {finding.claim}, {finding.case}: {finding.value:.3f} {finding.note}")
            if not options.quick:
                results.record(NAME, TABLE, rows_of(measured, items))
                results.MARKDOWN.write_text(results.render(results.load()), encoding="utf-8")
    results.last_line({"benchmark": NAME, "items": items, **claims_of(found), "quick": options.quick})


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
