"""The model card of a bundle, generated from its manifest."""

from __future__ import annotations

from rayrank.bundle.info import BundleInfo, Compression
from rayrank.schema import RegressionTask


def model_card(info: BundleInfo, items: int) -> str:
    """Markdown: what it is, data and split, metrics, limits, lineage."""
    schema = info.data_schema
    split = schema.split.model_dump(mode="json")
    options = ", ".join(f"{k} {v}" for k, v in split.items() if k != "kind")
    tasks = [f"| {t.name} | {t.kind} |" for t in schema.tasks]
    metrics = [f"| {name} | {value:.4f} |" for name, value in sorted(info.metrics.items())] or ["| (none recorded) | |"]
    parents = [f"* {p.role} `{p.bundle_id}`" for p in info.parents] + _pretrained(info)
    encoder = f"{info.encoder.name}, at most {info.encoder.max_tokens} tokens" if info.encoder else "none at run time"
    libraries = ", ".join(f"{k} {v}" for k, v in sorted(info.libraries.items()))
    lines = [
        f"# {info.role} trained on {schema.name}",
        "",
        f"A rayrank {info.role}: {info.parameters:,} parameters, {items:,} items, text encoder: {encoder}.",
        "It scores candidates for a user from the user's earlier events; it does not write, chat or explain.",
        "",
        "## Tasks",
        "| task | kind |",
        "|---|---|",
        *tasks,
        "",
        "## Data",
        f"* dataset `{schema.name}`, data fingerprint `{info.data_fingerprint[:16]}`",
        f"* split: {split['kind']} ({options})",
        f"* history: the {info.window} latest events of strictly earlier requests, with the labels given",
        "",
        "## Metrics",
        "Of the valid part, best epoch; what `evaluate` finds on test is in its evaluation.json.",
        "",
        "| metric | value |",
        "|---|---|",
        *metrics,
        "",
        *_compression(info.compression),
        "## Limits",
        *_limits(info),
        "",
        "## Lineage",
        *(parents or ["* none: trained from data alone"]),
        f"* created {info.created or 'unknown'}, code {info.git_revision or 'unknown'}",
        f"* {libraries}",
    ]
    return "\n".join(lines)


def _pretrained(info: BundleInfo) -> list[str]:
    """The text encoder that the weights started from, and whether training changed it."""
    if info.encoder is None or info.encoder.name == "tiny":
        return []
    tuned = ((info.config.get("encoder") or {}).get("tune") or {}).get("kind", "frozen")
    how = "kept frozen" if tuned == "frozen" else f"fine-tuned ({tuned})"
    weights = f", weights sha256 `{info.encoder.sha256[:16]}`" if info.encoder.sha256 else ""
    return [f"* pretrained text encoder {info.encoder.name}{weights}, {how}"]


def _compression(found: Compression | None) -> list[str]:
    """What was made smaller, how far the scores moved, and the true speed, faster or not."""
    if found is None:
        return []
    chosen = [f"{name} {value}" for name, value in found.method.items() if name != "kind" and value is not None]
    method = found.method["kind"] + (f" ({', '.join(chosen)})" if chosen else "")
    limits = {name: "–" if limit is None else f"{limit:g}" for name, limit in found.limits.items()}
    moved = [f"| {name} | {value:.4f} | {limits.get(name, '–')} |" for name, value in found.differences.items()]
    speeds = [
        f"| {name} | {before:,.1f} | {after:,.1f} | {after / before:.2f} |"
        for name, (before, after) in found.speeds.items()
    ]
    return [
        "## Compression",
        f"Made smaller from its last parent by {method}. Beside it on {found.part}:",
        "",
        "| difference | found | limit |",
        "|---|---|---|",
        *moved,
        "",
        "| one thread, processor time, both in turn | original | this bundle | ratio |",
        "|---|---|---|---|",
        *speeds,
        "",
        f"Measured {found.machine}.",
        "",
    ]


def _limits(info: BundleInfo) -> list[str]:
    lines = ["* Scores compare items for one user; they are not comparable between releases."]
    if any(isinstance(t, RegressionTask) for t in info.data_schema.tasks):
        lines.append("* Regression values are not cut to the range of the label.")
    if info.role == "student" and info.encoder is not None:
        lines.append("* Items not in the catalogue are known by the vector that its own encoder makes of their text.")
    elif info.role == "student":
        lines.append("* Items not in the catalogue are scored from their attributes until a teacher vector is given.")
    lines.append("* The data's licence and its biases (who rated what, and when) apply to the scores as well.")
    return lines
