"""By which metric epochs and trials are chosen when the tasks do not go by the default name."""

from __future__ import annotations

from rayrank.config import ConfigError
from rayrank.learning.spec import LearningSpec
from rayrank.metrics.summary import metric_names
from rayrank.schema import BinaryTask, DatasetSchema


def chosen(choose: str | None, schema: DatasetSchema, path: str = "learning.choose") -> tuple[str, bool]:
    """('<task>/<metric>', whether less is better).

    None: AUC of the first binary task, else RMSE of the first regression.

    Raises:
        ConfigError: a task that the dataset does not have, or a metric that its task does not have; told before
            anything is trained.
    """
    tasks = {task.name: task for task in schema.tasks}
    name, _, metric = (choose or "").partition("/")
    if name not in tasks and (choose or not schema.event_tasks):
        raise ConfigError(
            path, choose, f"no task '{name}'; tasks of this dataset: {', '.join(tasks)}", "use one of them"
        )
    if choose:
        if metric not in (known := metric_names(tasks[name])):
            raise ConfigError(path, choose, f"metrics of task {name}: {', '.join(known)}", "use one of those")
        return choose, False
    binary = schema.of_kind(BinaryTask)
    return (f"{binary[0].name}/auc", False) if binary else (f"{schema.event_tasks[0].name}/rmse", True)


def with_choice(learning: LearningSpec, schema: DatasetSchema) -> LearningSpec:
    """The spec with a metric that the dataset has."""
    choose, less = chosen(learning.choose, schema)
    if choose == learning.choose:
        return learning
    return learning.model_copy(update={"choose": choose, "lower_is_better": less})
