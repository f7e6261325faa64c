"""The jobs there are: the one list that ``python -m jobs``, ``rayrank`` and the doctor read.

Imports no pipeline module until a job is asked for, so that listing and ``--help`` stay quick.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from rayrank.config import Config

Progress = Callable[[str], None]
Pipeline = Callable[[Any, Progress], Any]


class Verb(NamedTuple):
    """What the list says of a job, and whether it runs without a config file."""

    line: str
    config_optional: bool = False


VERBS: Mapping[str, Verb] = {
    "init": Verb("Read your files and write a commented dataset YAML and a config of every job.", config_optional=True),
    "validate": Verb("Check a dataset YAML against the files it describes."),
    "prepare": Verb("Write a dataset: user-sequence shards, item and user tables (Ray Data)."),
    "train_teacher": Verb("Train a multi-task ranker on a pretrained text encoder, frozen or fine-tuned (Ray Train)."),
    "label": Verb("Let the teacher label every target once (Ray Data)."),
    "tune": Verb("Search task weights and distillation temperature (Ray Tune)."),
    "distill": Verb("Train the student on labels and cached teacher scores."),
    "compress": Verb("Make a bundle smaller and faster, or refuse it if its scores move too far."),
    "evaluate": Verb("Compare a model with baselines and the champion; ends in a verdict."),
    "compare": Verb("Set two or more bundles side by side on the same rows: metrics, p-values, slices, speed, size."),
    "score": Verb("Score shards in batch with the code that serves (Ray Data)."),
    "promote": Verb("Make a release the champion if every gate passes."),
    "funnel": Verb(
        "Measure what a release's cuts lose of the teacher's best, and find the cheapest pair within a latency budget."
    ),
    "serve": Verb("Start the ranking graph of the promoted release over HTTP (Ray Serve)."),
    "add_items": Verb(
        "Put items into the catalogue that is served, or take them out, without training.", config_optional=True
    ),
    "loadtest": Verb("Ask a running service at given rates; say how many replicas a rate needs."),
    "load_state": Verb("Put the histories that exist already into the store of user state."),
    "export_served": Verb("Turn the served log and feedback into tables that prepare reads."),
    "quickstart": Verb("Run the whole path on a small dataset and write a report.", config_optional=True),
    "doctor": Verb("Find what would break before it breaks.", config_optional=True),
}


@dataclass(frozen=True)
class Job:
    """A verb bound to its config class and its function."""

    name: str
    config: type[Config]
    function: Pipeline


def bind(name: str) -> Job:
    """Import ``rayrank.pipeline.NAME`` and bind its ``<CamelName>Config`` and ``<name>``."""
    module = importlib.import_module(f"rayrank.pipeline.{name}")
    camel = "".join(part.capitalize() for part in name.split("_"))
    return Job(name, getattr(module, f"{camel}Config"), getattr(module, name))
