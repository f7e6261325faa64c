"""The ``rayrank`` command: the same verbs as ``python -m jobs.NAME``, from any folder, without a checkout."""

from __future__ import annotations

import sys

from rayrank import __version__
from rayrank.entry import DONE, MISTAKE, listing, run, unknown_job
from rayrank.pipeline.verbs import VERBS, bind


def main() -> None:
    """``rayrank NAME [CONFIG.yaml] [a.b=c …] [--show]``."""
    sys.exit(dispatch(sys.argv[1:], "rayrank"))


def dispatch(argv: list[str], program: str) -> int:
    """Run the job that ``argv`` names, or list them; the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(f"rayrank {__version__}: train, distil and serve multi-task rankers on Ray\n")
        print(f"{program} NAME CONFIG.yaml [a.b=c …] [--show] [--help]\n\n{listing()}")
        return DONE
    if argv[0] == "--version":
        print(__version__)
        return DONE
    name = argv[0].replace("-", "_")
    if name not in VERBS:
        print(unknown_job(argv[0], f"{program} "), file=sys.stderr)
        return MISTAKE
    try:
        job = bind(name)
    except ModuleNotFoundError as error:
        print(f'error: {name}: got "{error.name}"; must be installed; fix: rayrank doctor names it', file=sys.stderr)
        return MISTAKE
    return run(job, argv[1:], program=f"{program} {name}")


if __name__ == "__main__":
    main()
