"""What every job does around its pipeline function: read the config, resolve paths, report, exit.

Both doors lead here: ``python -m jobs.NAME`` in a checkout and ``rayrank NAME`` from an installed wheel. Knows argv,
the terminal and exit codes; knows nothing about what the jobs do.

Exit codes: 0 done, 1 unexpected error, 2 mistake in config or input, 3 a gate refused (or a check failed).
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NamedTuple

from rayrank.config import Config, ConfigError, load, to_yaml
from rayrank.locations import base_folder, resolve_paths

DONE, FAILED, MISTAKE, REFUSED = 0, 1, 2, 3


class Verb(NamedTuple):
    """A job: the line that lists it, and whether it runs without a config file."""

    line: str
    config_optional: bool = False


VERBS: Mapping[str, Verb] = {
    "init": Verb("Read your files and write a commented dataset YAML."),
    "validate": Verb("Check a dataset YAML against the files it describes."),
    "prepare": Verb("Write a dataset: user-sequence shards, item and user tables (Ray Data)."),
    "train_teacher": Verb("Fine-tune the text encoder as a multi-task ranker (Ray Train, DDP)."),
    "label": Verb("Let the teacher label every target once (Ray Data)."),
    "tune": Verb("Search task weights and distillation temperature (Ray Tune)."),
    "distill": Verb("Train the student on labels and cached teacher scores."),
    "evaluate": Verb("Compare a model with baselines and the champion; ends in a verdict."),
    "score": Verb("Score shards in batch with the code that serves (Ray Data)."),
    "promote": Verb("Make a release the champion if every gate passes."),
    "serve": Verb("Start the ranking graph of the promoted release over HTTP (Ray Serve)."),
    "quickstart": Verb("Run the whole path on a small dataset and write a report.", config_optional=True),
    "doctor": Verb("Find what would break before it breaks.", config_optional=True),
}
"""The single list of jobs; NAME lives in ``rayrank.pipeline.NAME`` as ``<CamelName>Config`` and ``<name>``."""

Pipeline = Callable[[Any, Callable[[str], None]], Any]


@dataclass(frozen=True)
class Job:
    """A verb bound to its config class and pipeline function."""

    name: str
    verb: Verb
    config: type[Config]
    function: Pipeline
    program: str


def find(name: str, program: str) -> Job:
    """Import the pipeline module of ``name`` and bind it."""
    module = importlib.import_module(f"rayrank.pipeline.{name}")
    camel = "".join(part.capitalize() for part in name.split("_"))
    return Job(name, VERBS[name], getattr(module, f"{camel}Config"), getattr(module, name), program)


def listing() -> str:
    """One line per job."""
    width = max(map(len, VERBS))
    return "\n".join(f"  {name:<{width}}  {verb.line}" for name, verb in VERBS.items())


def start(config: type[Config], function: Pipeline) -> None:
    """Entry of ``jobs/NAME.py``: run ``function`` with argv and exit with its code."""
    name = function.__name__
    sys.exit(run(Job(name, VERBS[name], config, function, f"python -m jobs.{name}"), sys.argv[1:]))


def run(job: Job, argv: Sequence[str]) -> int:
    """Load the config, run the job, print what was made and where; the exit code."""
    options = _arguments(job).parse_args(argv)
    began = time.monotonic()
    try:
        config = resolve_paths(_load(job, options), base_folder(os.environ))
        if options.show:
            print(to_yaml(config), end="")
            return DONE
        result = job.function(config, _progress(began))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("error: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    except Exception as error:
        return _unexpected(error, debug=options.debug)
    print("\n".join(describe(result)))
    return REFUSED if getattr(result, "refused", False) else DONE


def describe(result: object) -> list[str]:
    """The lines that tell what was made: ``result.summary()``, else the dataclass fields, else its text."""
    summary = getattr(result, "summary", None)
    if callable(summary):
        return [str(line) for line in summary()]
    if is_dataclass(result):
        return [f"{f.name}: {getattr(result, f.name)}" for f in fields(result)]
    return [] if result is None else [str(result)]


def _arguments(job: Job) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=job.program,
        description=job.verb.line,
        epilog="Keys of the config:\n" + _keys(job.config),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    optional = "?" if job.verb.config_optional else None
    parser.add_argument("config", nargs=optional, metavar="CONFIG.yaml", help="the config file")  # type: ignore[arg-type]
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values that replace the file's")
    parser.add_argument("--show", action="store_true", help="print the resolved config and stop")
    parser.add_argument("--debug", action="store_true", help="print the stack trace of an unexpected error")
    return parser


def _keys(config: type[Config]) -> str:
    rows = []
    for name, field in config.model_fields.items():
        default = "required" if field.is_required() else f"default {field.get_default(call_default_factory=True)!r}"
        rows.append(f"  {name:<22}  {field.description or ''} ({default if len(default) < 60 else 'has a default'})")
    return "\n".join(rows)


def _load(job: Job, options: argparse.Namespace) -> Config:
    path, overrides = options.config, list(options.overrides)
    if path is not None and "=" in path and not os.path.exists(path):
        path, overrides = None, [path, *overrides]
    if path is None and not job.verb.config_optional:
        raise ConfigError("CONFIG.yaml", None, "this job needs a config file", f"{job.program} CONFIG.yaml [a.b=c …]")
    return load(job.config, path, overrides)


def _progress(began: float) -> Callable[[str], None]:
    def report(message: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {message}", file=sys.stderr, flush=True)

    return report


def _unexpected(error: Exception, *, debug: bool) -> int:
    trace, first_line = traceback.format_exc(), (str(error).splitlines() or ["(no message)"])[0]
    summary = f"error: unexpected {type(error).__name__}: {first_line}"
    if debug:
        print(f"{trace}\n{summary}", file=sys.stderr)
        return FAILED
    with tempfile.NamedTemporaryFile("w", prefix="rayrank-error-", suffix=".txt", delete=False) as file:
        file.write(trace)
    print(f"{summary}; stack trace: {file.name} (or run again with --debug)", file=sys.stderr)
    return FAILED
