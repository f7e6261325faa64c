"""Results that accumulate: ``docs/results.json`` holds the rows, ``docs/results.md`` is generated from it.

A row is kept under the hash of what made it (config, data, seed), so a benchmark that is run again computes only the
rows it lacks. Every row says on which machine, when and from which revision. No host names, no paths.

    python -m benchmarks.results            writes docs/results.md anew
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pydantic import Field

from rayrank.config import Config
from rayrank.pipeline.surroundings import cpu_model

ROOT = Path(__file__).resolve().parents[1]
JSON, MARKDOWN = ROOT / "docs" / "results.json", ROOT / "docs" / "results.md"
_HEAD = "# Results\n\nGenerated from `results.json` by `python -m benchmarks.results`; do not edit by hand.\n"


class Machine(Config):
    """What a row was measured on."""

    cpu: str = Field(description="processor model")
    cores: int = Field(ge=1, description="logical processors the process may use")


class Row(Config):
    """One measurement."""

    key: str = Field(description="hash of what made it")
    table: str = Field(description="the table it belongs to")
    arm: tuple[str, ...] = Field(description="labels of the line, one per label column")
    seed: int | None = Field(None, description="seed; None: nothing random")
    values: dict[str, float | None] = Field(description="column -> value")
    seconds: float | None = Field(None, description="training time")
    machine: Machine = Field(description="where")
    date: str = Field(description="when, ISO day, UTC")
    revision: str | None = Field(None, description="git revision of the code, '+' when there were changes")

    @property
    def place(self) -> tuple[str, tuple[str, ...], int | None]:
        """Table, arm and seed: what is shown once."""
        return self.table, self.arm, self.seed


class Table(Config):
    """How the rows of one benchmark are shown."""

    title: str = Field(description="heading")
    command: str = Field(description="what was run")
    note: str = Field("", description="how to read it")
    labels: tuple[str, ...] = Field(description="names of the label columns")
    columns: tuple[str, ...] = Field(description="value columns, in order")
    plot: str | None = Field(None, description="a picture of the rows, a file beside the page")


class Results(Config):
    """The whole file."""

    tables: dict[str, Table] = Field({}, description="name -> how it is shown")
    rows: tuple[Row, ...] = Field((), description="in the order they were recorded")

    def find(self, key: str) -> Row | None:
        """The row recorded under ``key``."""
        return next((row for row in self.rows if row.key == key), None)


def load(path: Path = JSON) -> Results:
    """The results so far; empty when there are none."""
    return Results.model_validate_json(path.read_text(encoding="utf-8")) if path.is_file() else Results()


def record(name: str, table: Table, rows: Iterable[Row], path: Path = JSON) -> Results:
    """Add rows and write the file atomically; what they replace goes.

    That is a row of the same key, and those of the same place (table, arm, seed) under another: made by a recipe or on
    data that is no more, they would be averaged with the new ones.
    """
    found, new = load(path), {row.key: row for row in rows}
    places = {row.place for row in new.values()}
    kept = {row.key: row for row in found.rows if row.key in new or row.place not in places} | new
    made = Results(tables=found.tables | {name: table}, rows=tuple(kept.values()))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(made.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n", "utf-8")
    os.replace(temporary, path)
    return made


def key_of(*parts: object) -> str:
    """16 hex digits over the JSON of what made a row."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stamp() -> dict[str, Any]:
    """Machine, date and revision of a row measured now."""
    return {
        "machine": Machine(cpu=cpu_model(), cores=len(os.sched_getaffinity(0))),
        "date": datetime.now(UTC).date().isoformat(),
        "revision": _revision(),
    }


def render(results: Results) -> str:
    """The Markdown page: mean ± standard deviation over seeds, one section per table."""
    sections = [_section(name, table, results.rows) for name, table in results.tables.items()]
    return "\n".join([_HEAD, *sections]) if sections else f"{_HEAD}\nNo benchmark was run yet.\n"


def _section(name: str, table: Table, rows: Sequence[Row]) -> str:
    mine = [row for row in rows if row.table == name]
    arms = list(dict.fromkeys(row.arm for row in mine))
    head = "| " + " | ".join([*table.labels, "seeds", *table.columns]) + " |"
    rule = "|" + "---|" * len(table.labels) + "---:|" * (len(table.columns) + 1)
    lines = [head, rule]
    for arm in arms:
        found = [row for row in mine if row.arm == arm]
        cells = [summary(column, [row.values.get(column) for row in found]) for column in table.columns]
        seeds = str(len({row.seed for row in found})) if found[0].seed is not None else "–"
        lines.append("| " + " | ".join([*arm, seeds, *cells]) + " |")
    note = f"{table.note}\n\n" if table.note else ""
    plot = f"![{table.title}]({table.plot})\n\n" if table.plot else ""
    return f"## {table.title}\n\n`{table.command}`\n\n{note}{plot}" + "\n".join(lines) + f"\n\n{_made_on(mine)}\n"


def summary(column: str, values: Sequence[float | None]) -> str:
    """Mean and, from two values on, the sample standard deviation, with digits that fit the size."""
    known = [v for v in values if v is not None]
    if not known:
        return "–"
    centre = mean(known)
    spread = stdev(known) if len(known) > 1 else 0.0
    if column in ("parameters", "candidates/s") or abs(centre) >= 1000:
        return _count(centre)
    return f"{centre:.4f} ± {spread:.4f}" if len(known) > 1 and spread > 0 else f"{centre:.4f}"


def _made_on(rows: Sequence[Row]) -> str:
    def distinct(values: Iterable[str | None]) -> str:
        return ", ".join(dict.fromkeys(v for v in values if v)) or "unknown"

    by_machine: dict[str, list[Row]] = {}
    for row in rows:
        by_machine.setdefault(f"{row.machine.cpu}, {row.machine.cores} cores", []).append(row)
    most = max(by_machine, key=lambda name: len(by_machine[name]), default="unknown")
    others = [f"{name} ({distinct(row.arm[-1] for row in by_machine[name])})" for name in by_machine if name != most]
    machines = "; ".join([most, *others])
    return (
        f"Measured {distinct(row.date for row in rows)} on {machines}; "
        f"revision {distinct(row.revision for row in rows)}."
    )


def _count(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _revision() -> str | None:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "platform", "benchmarks")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def last_line(claims: Mapping[str, object]) -> None:
    """Print what a benchmark found as one JSON object, the last line of its output."""
    print(json.dumps(dict(claims), allow_nan=False), flush=True)


if __name__ == "__main__":
    MARKDOWN.write_text(render(load()), encoding="utf-8")
    print(f"wrote {MARKDOWN.relative_to(ROOT)}", file=sys.stderr)
