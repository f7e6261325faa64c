"""Lineage in MLflow: sweep → trial → model, teacher → student, configs, metrics, artifacts and the registry.

The only importer of mlflow, and only when a tracker is opened: the import takes seconds. Uses the client API alone, so
no global "active run" leaks between threads or trials. Knows nothing about what the numbers mean, nor about Ray.
"""

from __future__ import annotations

import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, assert_never

from pydantic import Field

from rayrank.config import Config, ConfigError, DataPath, to_yaml

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

R = TypeVar("R")
_SQLITE = "sqlite:///"
_ARTIFACTS = "mlartifacts"
_LOCK_WAIT_S = 120.0
_RETRY_S = 30.0
_BATCH = 900  # a log_batch call takes at most 1,000 metrics and 100 params


class MlflowTracking(Config):
    """Runs, artifacts and the model registry go to an MLflow store."""

    kind: Literal["mlflow"] = "mlflow"
    uri: DataPath = Field(
        "sqlite:///runs/mlflow.db", description="tracking store: sqlite:///FILE, postgresql://… or http(s)://SERVER"
    )
    experiment: str = Field("rayrank", description="experiment that holds the runs", min_length=1)


class NoTracking(Config):
    """Nothing is recorded outside the bundle."""

    kind: Literal["none"] = "none"


TrackingConfig = Annotated[MlflowTracking | NoTracking, Field(discriminator="kind")]


class NullRun:
    """A run that records nothing; the interface of every run."""

    run_id: str | None = None

    def log_config(self, config: Config | Mapping[str, Any]) -> None:
        """Keep the resolved config: as ``config.yaml`` and, flattened, as params."""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Keep finite values under their names at ``step``; NaN means no data and is left out."""

    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        """Keep a file, or a folder with all in it, below ``folder`` of the run's artifacts."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Keep words to find the run by."""


class NullTracker:
    """Tracking switched off; the interface of every tracker."""

    @contextmanager
    def run(
        self, name: str, kind: str, parent: str | None = None, tags: Mapping[str, str] | None = None
    ) -> Iterator[NullRun]:
        """A run that ends with the block: finished, or failed when the block raises.

        ``kind`` says what the run made (teacher, student, sweep, trial, …); ``parent`` is the run id it is nested in.
        Other parents (the teacher of a student) are tags.
        """
        del name, kind, parent, tags
        yield NullRun()

    def attach(self, run_id: str | None) -> NullRun:
        """A run that another process opened, to log into; does not end it."""
        del run_id
        return NullRun()

    def register(
        self, model: str, folder: str, run_id: str | None = None, tags: Mapping[str, str] | None = None, note: str = ""
    ) -> str | None:
        """The version of ``model`` that points at ``folder`` (a bundle or a release).

        ``tags`` say what it is: a version of this folder that carries all of them is found, else one is added.
        """
        del model, folder, run_id, tags, note
        return None

    def set_alias(self, model: str, alias: str, version: str | None) -> None:
        """Point ``alias`` of ``model`` at ``version``."""

    def alias(self, model: str, alias: str) -> str | None:
        """The version that ``alias`` points at, or None."""
        del model, alias
        return None


class MlflowRun(NullRun):
    """A run in an MLflow store."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self.run_id, self._id = client, run_id, run_id

    def log_config(self, config: Config | Mapping[str, Any]) -> None:
        import yaml
        from mlflow.entities import Param

        raw = config.model_dump(mode="json") if isinstance(config, Config) else dict(config)
        text = to_yaml(config) if isinstance(config, Config) else yaml.safe_dump(raw, sort_keys=False)
        params = [Param(_name(key), str(value)[:500]) for key, value in _flat(raw)]
        for start in range(0, len(params), 100):
            _patiently(partial(self._client.log_batch, self._id, params=params[start : start + 100]))
        self._client.log_text(self._id, text, "config.yaml")

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        found = [Metric(_name(k), float(v), now, step) for k, v in metrics.items() if abs(float(v)) < float("inf")]
        for start in range(0, len(found), _BATCH):
            _patiently(partial(self._client.log_batch, self._id, metrics=found[start : start + _BATCH]))

    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        send = self._client.log_artifacts if Path(path).is_dir() else self._client.log_artifact
        send(self._id, str(path), folder or None)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            _patiently(partial(self._client.set_tag, self._id, key, str(value)))


class MlflowTracker(NullTracker):
    """An MLflow store; opening it creates the database and the experiment once."""

    def __init__(self, config: MlflowTracking) -> None:
        self.uri, self.experiment = _checked_uri(config.uri), config.experiment
        self._client = _client(self.uri)
        self._experiment_id = _patiently(self._find_or_create_experiment)

    @contextmanager
    def run(
        self, name: str, kind: str, parent: str | None = None, tags: Mapping[str, str] | None = None
    ) -> Iterator[MlflowRun]:
        words = {"rayrank.kind": kind, **(tags or {})} | ({"mlflow.parentRunId": parent} if parent else {})
        info = _patiently(lambda: self._client.create_run(self._experiment_id, run_name=name, tags=words)).info
        run, status = MlflowRun(self._client, info.run_id), "FAILED"
        try:
            yield run
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            _patiently(lambda: self._client.set_terminated(info.run_id, status))

    def attach(self, run_id: str | None) -> NullRun:
        return MlflowRun(self._client, run_id) if run_id else NullRun()

    def register(
        self, model: str, folder: str, run_id: str | None = None, tags: Mapping[str, str] | None = None, note: str = ""
    ) -> str | None:
        """See :meth:`NullTracker.register`. A server cannot read this machine's disk: there the folder is uploaded."""
        from mlflow.exceptions import MlflowException

        source = folder if "://" in folder else Path(folder).resolve().as_uri()
        words = {"folder": source, **(tags or {})}
        if tags and (known := self._registered(model, words)):
            return known
        if self.uri.startswith("http") and "://" not in folder and run_id:
            self._client.log_artifacts(run_id, folder, "model")
            source = f"{self._client.get_run(run_id).info.artifact_uri}/model"
        try:
            self._client.create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        made = _patiently(
            lambda: self._client.create_model_version(model, source, run_id, tags=words, description=note or None)
        )
        return str(made.version)

    def _registered(self, model: str, tags: Mapping[str, str]) -> str | None:
        """The latest version that carries all of ``tags``."""
        found = self._client.search_model_versions(f"name = '{model}'")
        fitting = [int(v.version) for v in found if all(v.tags.get(key) == value for key, value in tags.items())]
        return str(max(fitting)) if fitting else None

    def set_alias(self, model: str, alias: str, version: str | None) -> None:
        if version is None:
            raise ValueError("an alias needs a version that was registered in this store")
        _patiently(lambda: self._client.set_registered_model_alias(model, alias, version))

    def alias(self, model: str, alias: str) -> str | None:
        from mlflow.exceptions import MlflowException

        try:
            return str(self._client.get_model_version_by_alias(model, alias).version)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def _find_or_create_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(self.experiment)
        if found is None:
            place = None
            if self.uri.startswith(_SQLITE):
                place = (Path(self.uri.removeprefix(_SQLITE)).parent / _ARTIFACTS).as_uri()
            try:
                return str(self._client.create_experiment(self.experiment, artifact_location=place))
            except MlflowException as error:  # another process was first
                found = self._client.get_experiment_by_name(self.experiment)
                if found is None:
                    raise error
        if found.lifecycle_stage == "deleted":
            rule = "the experiment was deleted in this store"
            raise ConfigError("tracking.experiment", self.experiment, rule, "restore it, or choose another name")
        return str(found.experiment_id)


def open_tracker(config: MlflowTracking | NoTracking) -> NullTracker:
    """The tracker a config asks for. A new sqlite store takes some seconds to create, once.

    Raises:
        ConfigError: a file store (``./mlruns``), a relative path or an unknown kind of URI.
    """
    match config:
        case MlflowTracking():
            return MlflowTracker(config)
        case NoTracking():
            return NullTracker()
        case _:
            assert_never(config)


def check_tracking(config: MlflowTracking | NoTracking) -> None:
    """Refuse a store that cannot be opened by its address alone, before work is done that would be recorded there.

    Raises:
        ConfigError: as :func:`open_tracker`.
    """
    if isinstance(config, MlflowTracking):
        _checked_uri(config.uri)


def _checked_uri(uri: str) -> str:
    where = "tracking.uri"
    if uri.startswith(_SQLITE):
        path = uri.removeprefix(_SQLITE)
        if not path.startswith("/"):
            rule = "a sqlite store needs an absolute path on a local disk"
            raise ConfigError(where, uri, rule, "sqlite:////absolute/folder/mlflow.db")
        return uri
    if re.match(r"(https?|postgresql|mysql|mssql)(\+\w+)?://", uri):
        return uri
    rule = "MLflow keeps no model registry in plain folders (./mlruns), so file stores are refused"
    raise ConfigError(where, uri, rule, "sqlite:////absolute/folder/mlflow.db, or http(s)://SERVER, or kind: none")


def _client(uri: str) -> MlflowClient:
    for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ.setdefault(name, "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient

    if not uri.startswith(_SQLITE):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    path = Path(uri.removeprefix(_SQLITE))
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(f".{path.name}.lock")):  # two processes must not create the tables at once
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
        return client


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl

    deadline = time.monotonic() + _LOCK_WAIT_S
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    rule = f"another process has been creating the store for {_LOCK_WAIT_S:.0f} s"
                    raise ConfigError("tracking.uri", str(path), rule, "end that process") from None
                time.sleep(0.1)
        yield


def _patiently(call: Callable[[], R]) -> R:
    """Call again while sqlite says that another process is writing, for up to 30 s."""
    deadline, pause = time.monotonic() + _RETRY_S, 0.05
    while True:
        try:
            return call()
        except Exception as error:
            if "database is locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(pause * (0.5 + random.random()))
            pause = min(2 * pause, 1.0)


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _name(key: str) -> str:
    """MLflow names hold letters, digits, '_-. /' only."""
    return re.sub(r"[^\w\-. /]", "_", key)[:250]
