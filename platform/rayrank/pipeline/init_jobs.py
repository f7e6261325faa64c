"""The configs of every job after prepare, as init writes them: commented, short, with all folders inside one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template
from textwrap import indent

import yaml

from rayrank.schema import BinaryTask, DatasetSchema

_TEACHER = """\
# rayrank train_teacher THIS_FILE
# The same command goes on after an interruption, and finds the bundle when it is there already.
dataset: $dataset
output: $teacher  # the bundle
$encoder
learning:
  epochs: 3                      # of the second stage, on user sequences
  rows: {epochs: 3}              # the first stage, on shuffled rows
  # choose: $task/auc            # valid metric that picks the best epoch
workers: {count: 2}              # Ray Train workers (DDP); 0: this process alone
cache: $cache  # encoded texts, shared by runs
tracking: $tracking
"""
_TEXT = """\
encoder:
  kind: package                  # all-MiniLM-L6-v2 from PyPI; or folder, hub, tiny, none
  max_tokens: 64
  tune: {kind: frozen}           # top, lora, adalora, adapters, full: train it too (slower)"""
_NO_TEXT = "encoder: {kind: none}            # the items have no text\nmodel: {kind: teacher, inputs: {text: false}}"
_LABEL = """\
# rayrank label THIS_FILE
# A second run finds the labels; an interrupted one goes on at the first missing shard.
dataset: $dataset
teacher: $teacher
output: $labels
actors: 2                        # teacher processes; 0: this process, without Ray
samples: 4                       # items of the catalogue that are labelled too at each train target
"""
_DISTILLATION = """\
dataset: $dataset
teacher: $teacher  # its text vectors become the student's item table
labels: $labels  # its logits are the soft labels
output: $student
objective:
  weights: {}                    # task -> weight; none at all: 1/T each
  distillation: {unseen: 0.8, mix: 0.0, temperature: 1.0}   # unseen: weight at sampled items; mix: at labelled ones
learning:
  epochs: 3
  rows: {epochs: 3}
workers: {count: 0}              # a student needs no Ray Train; 2: DDP as the teacher
tracking: $tracking
"""
_TUNE = """\
# rayrank tune THIS_FILE, then rayrank distill $tune/best.yaml: the winner, with the output of distill.yaml
# Optional: searches task weights and distillation; each trial distils in its own process.
output: $tune  # best.yaml (a complete config of distill), trials.json
trials: 8
tracking: $tracking
distill:                         # what the trials vary; as in distill.yaml
"""
_EVALUATE = """\
# rayrank evaluate THIS_FILE
# Teacher and student beside popularity, recent popularity, item mean, user + item bias and the champion.
dataset: $dataset
teacher: $teacher
student: $student
releases: $releases
part: test                       # valid: for choosing between models; test: for reports, and once for promote's gates
output: $evaluation  # evaluation.json, metrics.csv, report.html, plots, scores
tracking: $tracking
"""
_COMPARE = """\
# rayrank compare THIS_FILE
# Any bundles of one dataset on the same rows; everything is said of a bundle beside the reference.
dataset: $dataset
bundles:                         # name -> bundle; add compressed ones, other seeds, other students
  teacher: $teacher
  student: $student
reference: teacher
part: test                       # valid: for choosing between models; test: for reports only
slices:
  cold_user_events: 5            # users and items with fewer training events are cold; the others are cut in thirds
  cold_item_events: 5
output: $compare  # compare.json, compare.md, plots, scores
tracking: $tracking
"""
_COMPRESS = """\
# rayrank compress THIS_FILE
# Optional: a smaller student. Exit code 3 and nothing written when the gate refuses; the numbers are printed anyway.
bundle: $student
dataset: $dataset
output: $smaller
method:
  kind: narrow                   # the student keeps so many …
  hidden: 48                     # … units of its first layer, then learns to say what the original says
gate:                            # against the original; null leaves a number out
  max_score_difference: 0.1      # of any score, on a scale of 0 to 1
  min_kendall_tau: 0.9           # order of a request's candidates
  max_ndcg_drop: 0.005
  max_logloss_ratio: 1.01
tracking: $tracking
"""
_PROMOTE = """\
# rayrank promote THIS_FILE
# Exit code 3 and nothing changed when a gate refuses.
dataset: $dataset
teacher: $teacher
student: $student
releases: $releases
fusion: $fusion  # Σ weight · score
gates:
  gain: 0.0                      # AUC and GAUC over the best baseline: the 95 % interval must lie above this
  lift: 0.97                     # share of the teacher's AUC - 0.5 that the student keeps
  calibration_low: 0.9           # predicted over observed positives
  calibration_high: 1.1
  latency_ms: 50                 # 95th percentile of the student's request
  $skip
model_name: $name  # in the model registry
tracking: $tracking
"""
_SCORE = """\
# rayrank score THIS_FILE
releases: $releases  # the champion scores
input:
  kind: shards                   # every target of a part; or kind: requests with path: a file of request bodies
  part: test
output: $scores
actors: 2                        # scoring processes, one logical CPU each; 0: this process, without Ray
"""
_FUNNEL = """\
# rayrank funnel THIS_FILE
# Optional: retrieve N1 -> the student hands on N2 -> the teacher orders them -> k are shown. What does each cut lose?
dataset: $dataset
releases: $releases  # the champion is measured
part: valid                      # valid: to choose (N1, N2); test: to report
requests: 200                    # one per user; the teacher scores the whole catalogue for each
k: 10
pools: [100, 200, 500]           # N1
reranks: [0, 20, 50, 100, 200]   # N2; 0: the student's order is final
budget_ms: 50                    # from the user's state to the answer, in one process on one thread …
share: 0.95                      # … for this share of requests
output: $funnel  # funnel.json, funnel.md, plots
tracking: $tracking
"""
_SERVE = """\
# rayrank serve THIS_FILE, then http://127.0.0.1:8000 (the API: /docs)
releases: $releases  # the champion is served
$playground
# now: 1700000000                # unix seconds taken for the present, where the log ended long ago
http: {host: 127.0.0.1, port: 8000}
# policy: policy.yaml            # editors' rules: filters, boosts, caps, pins, exploration; followed when edited
served_log: {path: $served}  # every answer, to train on it; leave this line out to keep none
"""
_EXPORT_SERVED = """\
# rayrank export_served THIS_FILE
# What was shown, and what users did with it (POST /v1/feedback), become the next data: rayrank prepare of its output.
releases: $releases
log: $served
output: $served_tables
window_s: 86400                  # feedback counts up to so many seconds after the answer
$entities"""
_FOLDERS = (
    "cache", "teacher", "labels", "tune", "student", "evaluation", "compare", "releases", "scores", "funnel", "served",
    "served_tables",
)  # fmt: skip
_PAGE = "serve_apps/playground.html"
_SKIP = "# skip: [latency]              # leave gates out; the release says so"
_NO_BASE_RATE = "skip: [calibration]            # sampled negatives: how often people click is made up"
_REGRESSION_WEIGHT = 0.5
"""Beside binary tasks, which weigh 1."""


def job_files(folder: str, dataset: str, schema: DatasetSchema, entities: Mapping[str, str]) -> dict[Path, str]:
    """Path -> text of the configs in ``folder`` of every job after prepare, which writes to ``dataset``.

    ``entities``: the raw tables of items and users that there are, by the keys that prepare's config has for them.
    """
    values = {name: one_line(str(Path(folder, name))) for name in _FOLDERS}
    values |= _names(folder, dataset, schema)
    values["skip"] = _NO_BASE_RATE if schema.sampled_negatives else _SKIP
    values["encoder"] = _TEXT if schema.text else _NO_TEXT
    values["playground"] = _playground()
    values["smaller"] = one_line(str(Path(folder, "student-small")))
    values["entities"] = "".join(f"{name}: {one_line(path)}\n" for name, path in entities.items())
    student = "" if schema.text else "model: {kind: student, inputs: {text: false}}\n"
    distillation = Template(_DISTILLATION).substitute(values) + student
    texts: Mapping[str, str] = {
        "train_teacher": Template(_TEACHER).substitute(values),
        "label": Template(_LABEL).substitute(values),
        "tune": Template(_TUNE).substitute(values) + indent(distillation, "  "),
        "distill": f"# rayrank distill THIS_FILE\n{distillation}",
        "evaluate": Template(_EVALUATE).substitute(values),
        "compare": Template(_COMPARE).substitute(values),
        "compress": Template(_COMPRESS).substitute(values),
        "promote": Template(_PROMOTE).substitute(values),
        "score": Template(_SCORE).substitute(values),
        "funnel": Template(_FUNNEL).substitute(values),
        "serve": Template(_SERVE).substitute(values),
        "export_served": Template(_EXPORT_SERVED).substitute(values),
    }
    return {Path(folder, f"{name}.yaml"): text for name, text in texts.items()}


def _playground() -> str:
    """The page that a checkout has; an installed package has none."""
    if Path(_PAGE).is_file():
        return f"playground: {_PAGE}   # a page at / to try it with; found from the checkout's folder"
    return f"# playground: {_PAGE}   # of a checkout: a page at / to try it with"


def _names(folder: str, dataset: str, schema: DatasetSchema) -> dict[str, str]:
    name = Path(folder).resolve().name or schema.name
    binary = [task.name for task in schema.of_kind(BinaryTask)]
    fusion = {t.name: 1.0 if t.name in binary else _REGRESSION_WEIGHT for t in schema.event_tasks}
    tracking = {"kind": "mlflow", "uri": f"sqlite:///{Path(folder, 'mlflow.db')}", "experiment": name}
    task = next(iter(binary), "TASK")
    lines = {"dataset": dataset, "name": name, "fusion": fusion, "tracking": tracking}
    return {"task": task, **{key: one_line(value) for key, value in lines.items()}}


def one_line(value: object) -> str:
    """A YAML value on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")
