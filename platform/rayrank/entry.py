"""What every job does around its pipeline function: read the config, resolve paths, report, exit.

Both doors lead here: ``python -m jobs.NAME`` in a checkout and ``rayrank NAME`` from an installed wheel. Knows argv,
the terminal and exit codes; knows nothing about what the jobs do.

Exit codes: 0 done, 1 unexpected error, 2 mistake in config or input, 3 refused (a gate, or a failed check).
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from rayrank.config import Config, ConfigError, load, path_fields, to_yaml
from rayrank.locations import base_folder, resolve_paths
from rayrank.pipeline.verbs import VERBS, Job, Pipeline

_KEYS = "keys of the config (in a command: key=value, section.key=value; --show prints all, with their values):"
DONE, FAILED, MISTAKE, REFUSED, INTERRUPTED = 0, 1, 2, 3, 130


def start(config: type[Config], function: Pipeline) -> None:
    """Entry of ``jobs/NAME.py``: run ``function`` with argv and exit with its code."""
    name = function.__name__
    sys.exit(run(Job(name, config, function), sys.argv[1:], program=f"python -m jobs.{name}"))


def run(job: Job, argv: Sequence[str], program: str) -> int:
    """Load the config, run the job, print what was made and where; the exit code."""
    options = _arguments(job, program).parse_intermixed_args(_flags_to_overrides(job.config, argv))
    config: Config | None = None
    try:
        config = resolve_paths(_load(job, options, program), base_folder(os.environ))
        if options.show:
            print(to_yaml(config), end="")
            return DONE
        result = job.function(config, _progress(time.monotonic()))
    except ConfigError as error:
        print(f"error: {_with_key(error, config)}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("error: interrupted; the same command goes on or starts anew", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        return _unexpected(error, debug=options.debug)
    print("\n".join(describe(result)))
    return REFUSED if getattr(result, "refused", False) else DONE


def listing() -> str:
    """One line per job."""
    width = max(map(len, VERBS))
    return "\n".join(f"  {name:<{width}}  {verb.line}" for name, verb in VERBS.items())


def unknown_job(name: str, prefix: str = "") -> str:
    """The error line for a job that there is not; ``prefix`` is what goes before a job's name in a command."""
    near = difflib.get_close_matches(name.replace("-", "_"), VERBS, n=1)
    hint = f"did you mean '{prefix}{near[0]}'?" if near else f"one of: {', '.join(VERBS)}"
    return f'error: NAME: got "{name}"; must be a job; fix: {hint}'


def describe(result: object) -> list[str]:
    """The lines that tell what was made: ``result.summary()``, else the dataclass fields, else its text."""
    summary = getattr(result, "summary", None)
    if callable(summary):
        return [str(line) for line in summary()]
    if is_dataclass(result):
        return [f"{f.name}: {getattr(result, f.name)}" for f in fields(result)]
    return [] if result is None else [str(result)]


def _arguments(job: Job, program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description=VERBS[job.name].line,
        epilog=f"{_KEYS}\n{_keys(job.config)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="CONFIG.yaml a.b=c", help="the config file, then overrides")
    parser.add_argument("--show", action="store_true", help="print the resolved config and stop")
    parser.add_argument("--debug", action="store_true", help="print the stack trace of an unexpected error")
    return parser


def _flags_to_overrides(config: type[Config], argv: Sequence[str]) -> list[str]:
    """``--name`` means ``name=true`` where the config has a yes-or-no key of that name."""
    flags = {f"--{name}" for name, field in config.model_fields.items() if field.annotation is bool}
    return [f"{word[2:]}=true" if word in flags else word for word in argv]


def _keys(config: type[Config], prefix: str = "", deeper: bool = True) -> str:
    """A line per key; below a section its own keys, but no more than one floor down: ``--show`` prints the rest."""
    rows = []
    width = max(20, *(len(prefix) + len(name) for name in config.model_fields))
    for name, field in config.model_fields.items():
        default: Any = None if field.is_required() else field.get_default(call_default_factory=True)
        text = "required" if field.is_required() else repr(default)
        if isinstance(default, Config):
            text = "its keys: below" if deeper else "its keys: --show"
        key, text = f"{prefix}{name}", text if len(text) <= 60 else text[:57] + "…"
        rows.append(f"  {key:<{width}} {field.description or ''} [{text}]")
        if isinstance(default, Config) and deeper:
            rows.append(_keys(type(default), f"  {key}.", deeper=False))
    return "\n".join(rows)


def _load(job: Job, options: argparse.Namespace, program: str) -> Config:
    files = [word for word in options.words if "=" not in word]
    overrides = [word for word in options.words if "=" in word]
    if len(files) > 1:
        raise ConfigError("CONFIG.yaml", files, "one config file at most", "write overrides as a.b=c")
    if not files and not VERBS[job.name].config_optional:
        raise ConfigError("CONFIG.yaml", None, "this job needs a config file", f"{program} CONFIG.yaml [a.b=c …]")
    return load(job.config, files[0] if files else None, overrides)


def _with_key(error: ConfigError, config: Config | None) -> ConfigError:
    """The error with the key of the config whose folder or file it is about; pipelines know the path alone."""
    for key, place in (path_fields(config) if config is not None else {}).items():
        if error.path == place:
            return ConfigError(key, place if error.value is None else error.value, error.rule, error.fix)
    return error


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
