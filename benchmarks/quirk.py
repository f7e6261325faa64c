"""Does knowledge pass, not only an item table? A quirk that only the teacher's labels held, looked for in students.

Two datasets of the same log, which differ by the likes alone. In the teacher's, every cohort of users (an attribute)
loves some genres of items and shuns others, at random: the quirk. In the student's there is nothing of it. The teacher
labels the student's shards, its bundle is deleted, and students are trained in processes in which transformers cannot
be imported, from those labels or from the hard labels alone; no item table is handed over. Then users whom nobody has
seen are scored, with their true cohort and without any: what the cohort changes, corrected for the means of users and
items, is correlated with the quirk. Their histories know nothing of it and speak against it, so it is smaller than it
was in the teacher's labels; without a history it is larger.

    python -m benchmarks.quirk [--seeds 0,1,2]
    python -m benchmarks.quirk --quick      one seed, smaller; nothing is kept
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks import results
from benchmarks.results import ROOT, Row, Table
from rayrank.batch import Events, Queries
from rayrank.bundle import Bundle, load_bundle
from rayrank.config import parse
from rayrank.features.encode import encode_categorical, index_for
from rayrank.pipeline.distill import DistillConfig, distill
from rayrank.pipeline.label import LabelConfig, label
from rayrank.pipeline.train_teacher import TrainTeacherConfig, train_teacher
from rayrank.sources.build import build, run_here
from rayrank.sources.dataset import Dataset
from rayrank.sources.spec import BuildSpec
from rayrank.sources.synthetic_text import MOODS, TOPICS, write_item

NAME, VERSION = "quirk", 1
COHORTS, ITEMS, EVENTS, STRENGTH = 12, 240, 60, 1.5
"""Cohorts of users, items, events of a user, and what a quirk adds to a logit or takes from it."""
DISTILLATION = {"mix": 0.5, "unseen": 1.0, "unseen_items": 2, "temperature": 1.0}
LIMIT_S = 1200.0
TABLE = Table(
    title="Knowledge that only the teacher's labels hold",
    command="python -m benchmarks.quirk",
    note=(
        f"{COHORTS} cohorts, {len(TOPICS)} genres: each cohort likes half of them more, by {STRENGTH} in the logit, "
        "and the others less. Absent from the students' hard labels. Correlation, over unseen users and all items, of "
        "what a user's cohort changes in the logit with the quirk, and the slope on it (1: the whole quirk), with "
        "histories of 60 events and without any. AUC: best epoch on valid, of the teacher on its own likes. Teacher "
        "deleted, transformers not importable."
    ),
    labels=("model",),
    columns=("correlation", "slope", "correlation, no history", "slope, no history", "AUC"),
)


@dataclass(frozen=True)
class Log:
    """Interactions of people with tastes; rows are users in turn, each with ``EVENTS`` events."""

    genre_N: np.ndarray
    mood_N: np.ndarray
    cohort_U: np.ndarray
    item_UE: np.ndarray
    truth_UE: np.ndarray  # logits of liking, without the quirk
    quirk_CG: np.ndarray  # what it adds, by cohort and genre

    @staticmethod
    def of(users: int, seed: int) -> Log:
        """People with tastes in genres and moods that their cohorts have nothing to do with."""
        rng = np.random.default_rng([seed, 71])
        genre_N, mood_N = rng.permutation(np.arange(ITEMS) % len(TOPICS)), rng.integers(len(MOODS), size=ITEMS)
        taste_UG, taste_UM = rng.normal(0, 1.0, (users, len(TOPICS))), rng.normal(0, 0.7, (users, len(MOODS)))
        bias_N = rng.normal(0, 0.5, ITEMS)
        item_UE = np.stack([rng.permutation(ITEMS)[:EVENTS] for _ in range(users)])
        user_U1 = np.arange(users)[:, None]
        truth_UE = taste_UG[user_U1, genre_N[item_UE]] + taste_UM[user_U1, mood_N[item_UE]] + bias_N[item_UE]
        cohort_U = rng.integers(COHORTS, size=users)
        return Log(genre_N, mood_N, cohort_U, item_UE, truth_UE, quirk_of(rng))

    def added(self, users: slice = slice(None)) -> np.ndarray:
        """float (U, N): what the quirk adds to the logit of each user and item."""
        return np.asarray(self.quirk_CG[self.cohort_U[users]][:, self.genre_N])

    def likes(self, quirk: bool, seed: int) -> np.ndarray:
        """int (U, E): the same luck with and without the quirk."""
        luck_UE = np.random.default_rng([seed, 72]).random(self.truth_UE.shape)
        logit_UE = self.truth_UE + quirk * np.take_along_axis(self.added(), self.item_UE, axis=1)
        return np.asarray(luck_UE < 1 / (1 + np.exp(-logit_UE))).astype(int)


def quirk_of(rng: np.random.Generator) -> np.ndarray:
    """float (cohorts, genres): each cohort has half of the genres up and half of them down."""
    signs_G = np.where(np.arange(len(TOPICS)) % 2, 1.0, -1.0)
    return STRENGTH * np.stack([rng.permutation(signs_G) for _ in range(COHORTS)])


def centred(values_UN: np.ndarray) -> np.ndarray:
    """Without the means of rows and columns."""
    rows_U1, columns_1N = values_UN.mean(1, keepdims=True), values_UN.mean(0, keepdims=True)
    return np.asarray(values_UN - rows_U1 - columns_1N + values_UN.mean())


def likeness(changed_UN: np.ndarray, quirk_UN: np.ndarray) -> tuple[float, float]:
    """(correlation, slope) of what a cohort changes on the quirk, both centred; (0, 0) when nothing changes at all."""
    changed, quirk = centred(changed_UN).ravel(), centred(quirk_UN).ravel()
    size = float(np.sqrt((changed**2).sum() * (quirk**2).sum()))
    return (float(changed @ quirk) / size if size > 0 else 0.0), float(changed @ quirk) / float((quirk**2).sum())


def prepare(log: Log, users: int, likes_UE: np.ndarray, folder: Path) -> str:
    """A dataset of the first ``users``."""
    folder.mkdir(parents=True)
    user, names = np.repeat(np.arange(users), EVENTS), [f"u{n:06d}" for n in range(users)]
    when = 1_600_000_000 + np.tile(np.arange(EVENTS) * 3600, users) + user * 7
    events = {
        "user_id": [names[n] for n in user], "item_id": [f"i{n:05d}" for n in log.item_UE[:users].ravel()],
        "timestamp": when, "liked": likes_UE[:users].ravel(),
    }  # fmt: skip
    rng = np.random.default_rng(73)
    texts = [write_item(rng, int(g), int(m)) for g, m in zip(log.genre_N, log.mood_N, strict=True)]
    items = {
        "item_id": [f"i{n:05d}" for n in range(ITEMS)], "title": [title for title, _ in texts],
        "description": [text for _, text in texts], "genre": [TOPICS[g].name for g in log.genre_N],
    }  # fmt: skip
    people = {"user_id": names, "cohort": [f"cohort {c}" for c in log.cohort_U[:users]]}
    for name, columns in (("interactions", events), ("items", items), ("users", people)):
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    schema = {
        "name": NAME,
        "tasks": [{"kind": "binary", "name": "like", "column": "liked"}],
        "user_features": [{"kind": "categorical", "name": "cohort", "column": "cohort"}],
        "item_features": [{"kind": "categorical", "name": "genre", "column": "genre"}],
        "text": "{title}. {description}",
        "title": "title",
    }
    (folder / "schema.yaml").write_text(json.dumps(schema), encoding="utf-8")
    tables = {name: str(folder / f"{name}.parquet") for name in ("interactions", "items", "users")}
    source = {"kind": "tables", "dataset": str(folder / "schema.yaml"), **tables}
    dataset = str(folder / "dataset")
    build(parse(BuildSpec, {"source": source, "path": dataset}), run_here, lambda _: None)
    return dataset


def changes(bundle: Bundle, log: Log, likes_UE: np.ndarray, about: tuple[slice, bool]) -> np.ndarray:
    """(U, N): what their cohort changes in the logits of unseen users for all items.

    ``about``: which users, and whether their histories are shown.
    """
    users, shown = about
    schema, ids = bundle.info.data_schema, bundle.items.column("item_id").to_pylist()
    row_N = np.empty(ITEMS, np.int64)
    for row, item_id in enumerate(ids, start=1):
        row_N[int(item_id[1:])] = row
    (feature,) = schema.user_features
    index = index_for(feature, bundle.features.users)  # type: ignore[arg-type]
    names = [f"cohort {c}" for c in log.cohort_U[users]]
    cohort_U = torch.tensor(encode_categorical(feature, index, names))  # type: ignore[arg-type]
    said = []
    for given in (cohort_U, torch.zeros_like(cohort_U)):
        events, queries = asked(row_N, log.item_UE[users], likes_UE[users], given)
        events = replace(events, history_BT=torch.full(events.item_BT.shape, shown))
        with torch.inference_mode():
            state = bundle.model.user_state(events, bundle.items_NW)
            said.append(bundle.model.score(state, queries, bundle.items_NW)["like"].numpy())
    return np.asarray(said[0] - said[1])


def asked(
    row_N: np.ndarray, item_UE: np.ndarray, likes_UE: np.ndarray, cohort_U: torch.Tensor
) -> tuple[Events, Queries]:
    """Histories of unknown users, and every item asked an hour later."""
    users, length = item_UE.shape
    when_E = 1_700_000_000 + torch.arange(length) * 3600
    size = (users, len(row_N))
    events = Events(
        item_BT=torch.from_numpy(row_N[item_UE]),
        request_BT=torch.arange(length, dtype=torch.int32).expand(users, length),
        time_BT=when_E.expand(users, length),
        labels_BT={"like": torch.from_numpy(likes_UE).float()},
        user_B=torch.zeros(users, dtype=torch.int64),
        user_features={"cohort": cohort_U},
        key_B=torch.arange(users),
    )
    before = torch.full(size, length, dtype=torch.int32)
    return events, Queries(torch.from_numpy(row_N).expand(size), (when_E[-1] + 3600).expand(size), before)


def student_config(dataset: str, labels: str | None, output: str, epochs: int, seed: int) -> dict[str, Any]:
    """Of a student that is handed no item table; undistilled without labels."""
    return {
        "dataset": dataset, "labels": labels, "output": output,
        "model": {"kind": "student", "inputs": {"text": False}},
        "objective": {"distillation": DISTILLATION if labels else None},
        "learning": {"seed": seed, "epochs": epochs, "choose": "like/auc", "patience": epochs},
        "tracking": {"kind": "none"},
    }  # fmt: skip


def without_transformers(config: Path) -> None:
    """Train a student in a process of its own, where importing transformers fails."""
    code = (
        "import sys; sys.modules['transformers'] = None; import benchmarks.quirk as quirk; from pathlib import Path; "
        "quirk.student(Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(config)], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S,
        check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "platform"), str(ROOT)])},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the student failed: {done.stderr[-2000:]}")


def student(config: Path) -> None:
    """In the process without transformers."""
    torch.set_num_threads(1)
    distill(parse(DistillConfig, json.loads(config.read_text(encoding="utf-8"))), lambda _: None)


def run(folder: Path, users: int, epochs: int, seed: int) -> dict[str, dict[str, float]]:
    """One seed: what teacher, distilled and undistilled student make of the quirk, by model."""
    unseen = users // 4
    log = Log.of(users + unseen, seed)
    odd_UE, plain_UE = log.likes(True, seed), log.likes(False, seed)
    taught, learnt = (prepare(log, users, likes, folder / n) for n, likes in (("odd", odd_UE), ("plain", plain_UE)))
    assert Dataset.open(taught).manifest.data_fingerprint != Dataset.open(learnt).manifest.data_fingerprint
    teacher, labels = str(folder / "teacher"), str(folder / "labels")
    raw = {
        "dataset": taught, "output": teacher, "model": {"kind": "teacher"},
        "encoder": {"kind": "package", "max_tokens": 32}, "workers": {"count": 0}, "tracking": {"kind": "none"},
        "learning": {"seed": seed, "epochs": epochs, "choose": "like/auc", "patience": epochs},
    }  # fmt: skip
    train_teacher(parse(TrainTeacherConfig, raw), lambda _: None)
    label(parse(LabelConfig, {"dataset": learnt, "teacher": teacher, "output": labels, "actors": 0}), lambda _: None)
    held, found = slice(users, users + unseen), dict[str, dict[str, float]]()

    def look(name: str, bundle: Bundle) -> None:
        values = [likeness(changes(bundle, log, plain_UE, (held, shown)), log.added(held)) for shown in (True, False)]
        auc = bundle.info.metrics["streaming/like/auc"]
        found[name] = dict(zip(TABLE.columns, [*values[0], *values[1], auc], strict=True))
        print(f"seed {seed}, {name}: {found[name]}", file=sys.stderr, flush=True)

    look("teacher", load_bundle(teacher))
    shutil.rmtree(teacher)
    for name, given in (("distilled student", labels), ("undistilled student", None)):
        output = str(folder / name.split()[0])
        config = folder / f"{name.split()[0]}.json"
        config.write_text(json.dumps(student_config(learnt, given, output, epochs, seed)), encoding="utf-8")
        without_transformers(config)
        look(name, load_bundle(output))
    hard_UE = np.take_along_axis(log.added(), log.item_UE, axis=1)[:users].ravel()
    for name, likes in (("teacher's hard labels", odd_UE), ("students' hard labels", plain_UE)):
        told = float(np.corrcoef(likes[:users].ravel(), hard_UE)[0, 1])
        found[name] = dict.fromkeys(TABLE.columns, float("nan")) | {"correlation": told}
    return found


def claims_of(found: Sequence[dict[str, dict[str, float]]]) -> dict[str, object]:
    """Mean correlations by model, and every seed's of the students."""
    mean = {name: round(float(np.mean([one[name]["correlation"] for one in found])), 4) for name in found[0]}
    each = {n: [round(one[n]["correlation"], 4) for one in found] for n in ("distilled student", "undistilled student")}
    return {"quirk_distilled": mean["distilled student"], "quirk_undistilled": mean["undistilled student"],
            "correlation": mean, "by_seed": each}  # fmt: skip


def main() -> None:
    """Run the seeds, keep the rows, print the claims."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed, smaller; nothing is kept")
    parser.add_argument("--seeds", default="0,1,2")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in options.seeds.split(",")][: 1 if options.quick else None]
    users, epochs = (300, 3) if options.quick else (600, 4)
    found, rows = [], []
    for seed in seeds:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="rayrank-quirk-") as folder:
            found.append(run(Path(folder), users, epochs, seed))
        for name, values in found[-1].items():
            key = results.key_of(NAME, VERSION, users, epochs, DISTILLATION, name, seed)
            known = {column: None if np.isnan(value) else value for column, value in values.items()}
            rows.append(
                Row(key=key, table=NAME, arm=(name,), seed=seed, seconds=time.monotonic() - began, values=known,
                    **results.stamp())
            )  # fmt: skip
    if not options.quick:
        results.record(NAME, TABLE, rows)
        results.MARKDOWN.write_text(results.render(results.load()), encoding="utf-8")
    results.last_line({"benchmark": NAME, **claims_of(found), "users": users, "seeds": seeds, "quick": options.quick})


if __name__ == "__main__":
    main()
