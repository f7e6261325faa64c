"""What the distilled student keeps of its teacher, gains by it, and saves.

On MovieLens-1M (users 1–2999, split ``ml1m-user``) and KuaiRand-Pure, paired seeds. Resumable: rows that are in
docs/results.json are not measured again; models are kept in the work folder under the hash of their config, found
again when they are whole, and an interrupted training goes on where it was.

    python -m benchmarks.distill [--datasets ml1m-user,kuairand] [--sections speed,naive,label,budget,quality]
                                 [--seeds 0,1,2,3,4] [--data FOLDER] [--work FOLDER]
    python -m benchmarks.distill --quick      every section on generated data, within two minutes; nothing is kept
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import results
from benchmarks.distill.arms import DISTILLED, PASSES, TEACHER, Arms
from benchmarks.distill.budget import BUDGETS_MS, ndcg_at_budget
from benchmarks.distill.kept import Kept
from benchmarks.distill.labelling import label_vs_naive
from benchmarks.distill.quality import PROTOCOLS, Situations, measured
from benchmarks.distill.speed import Effort, speed_ratio, student_vs_naive
from benchmarks.quality_ml1m import Setting
from benchmarks.results import ROOT

COMMAND = "python -m benchmarks.distill"
SOURCES = {
    "ml1m-user": ("movielens", "ml-1m", "ratings.dat"),
    "kuairand": ("kuairand", "kuairand-pure", "video_features_basic_pure.csv"),
}
"""Dataset -> (its job configs and kind of source, its folder, a file of it)."""


@dataclass(frozen=True)
class Bench:
    """The models of one dataset, where its rows go, and how thoroughly is measured."""

    arms: Arms
    kept: Kept
    effort: Effort
    targets: int = 1024  # that the naive loop labels
    users: int = 1000  # whose candidates are ordered under a budget
    budget_rounds: int = 15

    def speed(self, seed: int) -> dict[str, float]:
        """Student and teachers."""
        student, teacher = self.arms.bundle(DISTILLED, seed), self.arms.bundle(TEACHER, seed)
        return speed_ratio(student, teacher, self.arms.dataset, self.effort)

    def naive(self, seed: int) -> dict[str, float]:
        """Student and its naive forward pass."""
        return student_vs_naive(self.arms.bundle(DISTILLED, seed), self.arms.dataset, self.effort)

    def label(self, seed: int) -> dict[str, float]:
        """The label job and a loop."""
        return label_vs_naive(self.arms.bundle(TEACHER, seed), self.arms.dataset, self.targets, self.effort.slow_rounds)

    def budget(self, seed: int) -> dict[str, float]:
        """Order in equal time."""
        student, teacher = self.arms.bundle(DISTILLED, seed), self.arms.bundle(TEACHER, seed)
        return ndcg_at_budget(student, teacher, self.arms.dataset, self.arms.task, self.users, self.budget_rounds)

    def quality(self, seed: int) -> None:
        """Every arm's metrics."""
        situations: Situations | None = None
        for arm in (TEACHER, *self.arms.students):
            recipe = self.arms.recipe(arm, seed)
            keys = {protocol: self.kept.key("quality", arm, recipe, seed, protocol) for protocol in PROTOCOLS}
            for protocol in [protocol for protocol, key in keys.items() if not self.kept.has(key)]:
                situations = situations or Situations.of(self.arms.dataset)
                found = measured(self.arms.bundle(arm, seed), self.arms.dataset, protocol, situations)
                _say(f"{arm}, {protocol}, seed {seed}: {found}")
                self.kept.keep_quality(keys[protocol], seed, (arm, protocol), found)

    def measure(self, section: str, seed: int) -> None:
        """A section with one seed, unless its rows are there."""
        if section == "quality":
            return self.quality(seed)
        key = self.kept.key(section, self.arms.recipe(DISTILLED, seed), seed, repr(self))
        if self.kept.has(key):
            return _say(f"{section}, seed {seed}: there already")
        found = SECTIONS[section](self, seed)
        _say(f"{section}, seed {seed}: {found}")
        return self.kept.keep_claims(key, seed, found)

    def __repr__(self) -> str:
        """What decides how thoroughly is measured, for keys."""
        return repr((self.effort, self.targets, self.users, self.budget_rounds))


SECTIONS: Mapping[str, Callable[[Bench, int], Any]] = {
    "speed": Bench.speed, "naive": Bench.naive, "label": Bench.label, "budget": Bench.budget, "quality": Bench.quality,
}  # fmt: skip


def claims(kept: Kept, task: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Claim -> value, of one dataset; those that were not measured are missing."""
    found, quality = kept.claimed(seeds), kept.judged(seeds)
    made: dict[str, Any] = {
        "speed_ratio": {n: found[f"speed_ratio {n}"] for n in ("warm", "cold", "cross") if f"speed_ratio {n}" in found},
        "ndcg_at_budget": {
            str(ms): found[f"ndcg_at_budget {ms}"] for ms in BUDGETS_MS if f"ndcg_at_budget {ms}" in found
        },
        **{name: found.get(name) for name in ("student_vs_naive_forward", "label_vs_naive")},
    }
    if quality is not None:
        made |= {
            "lift_kept": quality.lift_kept(), "kd_gain": quality.kd_gain(task), "rmse_ratio": quality.rmse_ratio(),
            "logloss_ratio": quality.logloss_ratio(), "calibration": quality.calibration(),
        }  # fmt: skip
    return {name: value for name, value in made.items() if value}


def run(bench: Bench, sections: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """Measure what is missing of one dataset."""
    for seed in seeds:
        for section in sections:
            bench.measure(section, seed)
    made = claims(bench.kept, bench.arms.task, seeds)
    if gain := made.get("kd_gain"):  # the intervals belong into the table too; they are of all these seeds
        rows = {
            f"kd_gain, {what}, {part}": value
            for what, found in gain.items() if isinstance(found, dict)
            for part, value in found.items() if value is not None
        }  # fmt: skip
        rows |= {f"lift_kept, {t}": v for t, v in made["lift_kept"].items()}
        rows |= {f"logloss_ratio, {t}": v for t, v in made["logloss_ratio"].items()}
        bench.kept.keep_claims(bench.kept.key("compared"), None, rows, timed=False)
    return made


def _full(data: str, options: argparse.Namespace) -> Bench:
    kind, folder, _ = SOURCES[data]
    setting = Setting(
        work=Path(options.work).resolve() / data,
        file=results.JSON,
        recipes=ROOT / "jobs" / "configs" / kind,
        source={"kind": kind, "path": str(Path(options.data).resolve() / folder)},
        seeds=(),
        title="",
        command=COMMAND,
    )
    arms = Arms.of(setting, PASSES, _say)
    return Bench(arms, Kept(setting.file, data, arms.dataset.manifest.data_fingerprint), Effort())


def _quick(folder: Path) -> Bench:
    short = {"epochs": 1, "batch_events": 1024, "learning_rate": 4e-3, "rows": {"epochs": 1}}
    setting = Setting(
        work=folder,
        file=folder / "results.json",
        recipes=folder,
        source={"kind": "synthetic", "num_rows": 8_000, "num_users": 250, "num_items": 120},
        seeds=(),
        title="",
        command=f"{COMMAND} --quick",
        teacher={"encoder": {"kind": "package", "max_tokens": 48}, "learning": short},
        student={"model": {"kind": "student"}, "learning": short},
    )
    arms = Arms.of(setting, (1, 2), _say)
    kept = Kept(setting.file, "generated", arms.dataset.manifest.data_fingerprint)
    return Bench(arms, kept, Effort(2, 1, 8, 64), targets=64, users=50, budget_rounds=2)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="small, generated data, within two minutes; nothing is kept"
    )
    parser.add_argument("--datasets", default=",".join(SOURCES), help="comma-separated")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="comma-separated, in this order")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="comma-separated")
    data = os.environ.get("RAYRANK_DATA", str(ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", default=data, help="folder of the datasets")
    parser.add_argument("--work", default=str(ROOT / "runs" / "benchmarks" / "distill"), help="folder for models")
    options = parser.parse_args(argv)
    for name, known in (("datasets", SOURCES), ("sections", SECTIONS)):
        given = getattr(options, name).split(",")
        setattr(options, name, given)
        if unknown := set(given) - set(known):
            parser.error(f"--{name} {','.join(sorted(unknown))}: {name} are {', '.join(known)}")
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    for name in [] if options.quick else options.datasets:
        _, folder, file = SOURCES[name]
        if not (Path(options.data) / folder / file).is_file():
            parser.error(f"{Path(options.data) / folder}: must hold {file}; set RAYRANK_DATA to the folder above it")
    return options


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, bring docs/results.md up to date, print the claims."""
    options = _arguments(argv)
    torch.set_num_threads(1)
    found: dict[str, dict[str, Any]] = {}
    if options.quick:
        options.seeds = options.seeds[:1]
        with tempfile.TemporaryDirectory(prefix="rayrank-distill-") as folder:
            bench = _quick(Path(folder))
            found["generated"] = run(bench, options.sections, options.seeds)
            print(results.render(results.load(bench.kept.file)))
    else:
        for data in options.datasets:
            found[data] = run(_full(data, options), options.sections, options.seeds)
            results.MARKDOWN.write_text(results.render(results.load()), encoding="utf-8")
    names = dict.fromkeys(name for made in found.values() for name in made)
    by_claim = {name: {data: made[name] for data, made in found.items() if name in made} for name in names}
    results.last_line({"benchmark": "distill", "seeds": options.seeds, **by_claim, "quick": options.quick})


if __name__ == "__main__":
    main()
