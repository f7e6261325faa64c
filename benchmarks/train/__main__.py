"""How fast rankers are trained: every claim with both arms in one run, in turn, on outputs that are compared first.

One thread. Texts and log are MovieLens's where ``RAYRANK_DATA`` (or ../shared/data) holds its files, generated ones
elsewhere. Neither Ray nor a cluster is needed.

    python -m benchmarks.train [--only causal_vs_rows,vs_naive_loop]
    python -m benchmarks.train --quick      little of everything; nothing is kept
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import results
from benchmarks.results import ROOT, Row, Table
from benchmarks.train import encoder, loop
from benchmarks.train.data import Prepared
from benchmarks.train.race import seconds_to_cold_auc
from rayrank.models.linear import multiplies_bf16
from rayrank.models.tuning import AdaLora, Adapters, Full, Lora, Top, TuneSpec

NAME, VERSION = "train", 1
TABLE = Table(
    title="Speed of training",
    command="python -m benchmarks.train",
    note=(
        "One thread, both arms in one run and in turn, medians. Outputs are compared before anything is timed; of the "
        "loops, which are different models, AUC on the same events. events/s is of the second stage, whole run of all "
        "that training takes. Texts are titles and genres unless the claim says long. Shares of the ceiling are of the "
        "fastest matrix product by either library. Load: average over the last minute when the claim was measured."
    ),
    labels=("data", "claim"),
    columns=("value", "load"),
)
KINDS: Mapping[str, TuneSpec] = {
    "top 1": Top(), "top 2": Top(layers=2), "lora": Lora(), "lora, top 2": Lora(layers=2), "adalora": AdaLora(),
    "adapters": Adapters(), "adapters, top 2": Adapters(layers=2), "full": Full(),
}  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """What the claims are measured on, and how thoroughly."""

    movielens: str | None
    folder: Path
    quick: bool

    @property
    def rounds(self) -> int:
        """Timed rounds of each claim."""
        return 2 if self.quick else 5

    def texts(self) -> tuple[list[str], list[str]]:
        """Short and long texts."""
        return encoder.item_texts(self.movielens)

    def prepared(self) -> Prepared:
        """The log, texts cut after 24 tokens: titles and genres."""
        return Prepared.of(self.folder, self.movielens, 24)


def bucketed(bench: Bench) -> dict[str, float]:
    """Titles and genres against padding to 64, full texts against padding to 512."""
    short, long = bench.texts()
    times = encoder.bucketed_vs_padded(short, 64, 64 if bench.quick else 128, bench.rounds)
    times_long = encoder.bucketed_vs_padded(long, 512, 8 if bench.quick else 16, bench.rounds)
    found = {"bucketed_vs_padded": times, "bucketed_vs_padded_long": times_long}
    return found | {"useful_token_share": encoder.useful_tokens(short)}


def frozen_prefix(bench: Bench) -> dict[str, float]:
    """Top two layers on kept activations."""
    count = 64 if bench.quick else 128
    return {"frozen_prefix_vs_full": encoder.frozen_prefix_vs_full(bench.texts()[0], count, bench.rounds)}


def ceiling(bench: Bench) -> dict[str, float]:
    """The encoder's forward pass; in bfloat16 where the machine multiplies it."""
    texts, count, found = bench.texts()[0], 300 if bench.quick else 1500, dict[str, float]()
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        if name == "fp32" or multiplies_bf16(torch.device("cpu")):
            share, rate = encoder.gemm_share(texts, count, bench.rounds, dtype)
            found |= {f"gemm_share_{name}": share, f"ceiling GFLOP/s {name}": rate}
    return found


def bfloat16(bench: Bench) -> dict[str, float]:
    """Training steps of the encoder with products in bfloat16."""
    if not multiplies_bf16(torch.device("cpu")):
        return {}
    return {"bf16_vs_fp32": encoder.bf16_vs_fp32(bench.texts()[0], 64 if bench.quick else 256, bench.rounds)}


def tuning(bench: Bench) -> dict[str, float]:
    """Texts a second by kind of tuning."""
    found = encoder.kinds_of_tuning(bench.texts()[0], dict(KINDS), 64 if bench.quick else 128, bench.rounds)
    return {f"{kind}: {what}": value for kind, values in found.items() for what, value in values.items()}


def causal(bench: Bench) -> dict[str, float]:
    """One pass over a sequence."""
    return {"causal_vs_rows": loop.causal_vs_rows(bench.prepared(), bench.rounds, 1 if bench.quick else 4)}


def naive(bench: Bench) -> dict[str, float]:
    """The whole loop, the encoder trained."""
    return loop.vs_naive_loop(bench.prepared(), Full(), 8 if bench.quick else 200, 1)


def race(bench: Bench) -> dict[str, float]:
    """To the same AUC on cold items, on a generated log whose signal is in two words of each text."""
    size = {"num_rows": 6_000, "num_users": 300, "num_items": 200} if bench.quick else {}
    source = {"kind": "synthetic", "signal": "veiled_text", **size}
    texts_only = Prepared.from_source(source, bench.folder.with_name("text-only"), 64)
    return seconds_to_cold_auc(texts_only, 20.0 if bench.quick else 1500.0)


CLAIMS: Mapping[str, Callable[[Bench], dict[str, float]]] = {
    "bucketed_vs_padded": bucketed,
    "frozen_prefix_vs_full": frozen_prefix,
    "gemm_share": ceiling,
    "bf16_vs_fp32": bfloat16,
    "tuning": tuning,
    "causal_vs_rows": causal,
    "vs_naive_loop": naive,
    "seconds_to_cold_auc": race,
}


def rows_of(data: str, found: Mapping[str, float]) -> list[Row]:
    """Rows of the results table."""
    load = os.getloadavg()[0]
    return [
        Row(
            key=results.key_of(NAME, VERSION, data, claim), table=NAME, arm=(data, claim),
            values={"value": value, "load": load}, **results.stamp(),
        )
        for claim, value in found.items()
    ]  # fmt: skip


def main() -> None:
    """Measure, keep the rows, print the claims."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="little of everything; nothing is kept")
    parser.add_argument("--only", default=",".join(CLAIMS))
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := set(names) - set(CLAIMS):
        parser.error(f"--only {','.join(sorted(unknown))}: claims are {', '.join(CLAIMS)}")
    torch.set_num_threads(1)
    place = Path(os.environ.get("RAYRANK_DATA", ROOT.parent / "shared" / "data")) / "ml-1m"
    movielens = str(place) if (place / "ratings.dat").is_file() else None
    data, found = "MovieLens" if movielens else "generated", dict[str, float]()
    with tempfile.TemporaryDirectory(prefix="rayrank-train-") as folder:
        bench = Bench(movielens, Path(folder) / "dataset", options.quick)
        for name in names:
            measured = CLAIMS[name](bench)
            found |= measured
            print(f"{name}: {measured}", file=sys.stderr, flush=True)
            if not options.quick:
                results.record(NAME, TABLE, rows_of(data, measured))
                results.MARKDOWN.write_text(results.render(results.load()), encoding="utf-8")
    results.last_line({"benchmark": NAME, "data": data, **found, "quick": options.quick})


if __name__ == "__main__":
    main()
