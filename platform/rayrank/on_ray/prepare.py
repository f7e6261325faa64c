"""Runs the tasks of a dataset build through Ray Data: as many at a time as the cluster has cores.

Between the passes data goes through files in the dataset's work folder (the exchange of the hash shuffle), so the
object store never fills, whatever the number of rows. Knows tasks and Ray; knows nothing about what a task does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from rayrank.config import ConfigError, parse
from rayrank.on_ray.cluster import cpus_of_a_core
from rayrank.on_ray.patience import Limit, ReadAhead
from rayrank.sources.spec import BuildSpec, Result, Task
from rayrank.sources.tasks import perform


def run_on_ray(spec: BuildSpec, tasks: Sequence[Task], stall_s: float = 1800.0) -> Iterator[Result]:
    """Run tasks on the initialised Ray cluster; results come in the tasks' order, however scheduled.

    Nothing runs before the first is asked for, and no more than those that came early are kept.

    Raises:
        ConfigError: a task found a mistake in config or input, or no task ended for ``stall_s``.
    """
    import ray

    text = spec.model_dump_json()
    rows = [{"at": at, "spec": text, "task": task.model_dump_json()} for at, task in enumerate(tasks)]
    # A task is busy all the time: more of them than there are cores would take the memory of each.
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(_run_row, num_cpus=cpus_of_a_core()).iter_rows()
    mistake: ConfigError | None = None
    early: dict[int, Result] = {}
    due = 0
    # To the end, whatever is found: an abandoned stream keeps its CPUs.
    for row in ReadAhead(iter(done), 16, Limit("cluster.stall_s", stall_s, "part of the dataset")):
        answer = json.loads(row["answer"])
        if "error" in answer:
            mistake = mistake or ConfigError(**answer["error"])
            continue
        early[row["at"]] = answer["result"]
        while mistake is None and due in early:
            yield early.pop(due)
            due += 1
    if mistake is not None:
        raise mistake


def _run_row(row: dict[str, Any]) -> dict[str, Any]:
    """One task on a worker. A user's mistake travels as data: Ray would wrap the exception beyond recognition."""
    try:
        spec = parse(BuildSpec, json.loads(row["spec"]), "build")
        answer = {"result": perform(spec, parse(Task, json.loads(row["task"]), "task"))}
    except ConfigError as error:
        answer = {"error": error.as_dict()}
    return {"at": row["at"], "answer": json.dumps(answer, default=str)}
