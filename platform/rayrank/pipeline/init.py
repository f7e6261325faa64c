"""The init job: reads your files and writes a commented dataset YAML and configs of all jobs that run as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pydantic import Field

from rayrank.config import Config, ConfigError, DataPath, load, parse
from rayrank.pipeline.init_jobs import job_files, one_line
from rayrank.pipeline.init_keys import KeyConfig, Keys, Raw, choose_keys
from rayrank.pipeline.prepare import PrepareConfig, sampled_warning
from rayrank.schema import BinaryTask, DatasetSchema, Feature, MulticlassTask, RegressionTask, RetrievalTask, Task
from rayrank.sources import guess, storage
from rayrank.sources.config import open_source
from rayrank.sources.newcomers import new_in_test
from rayrank.sources.profile import sample
from rayrank.sources.source import EVERY_ROW

NEGATIVES = 4
NEARLY_ALL = 0.9
NEW_USERS = "the test users of a split by time have no training rows (in the sample): write split: {kind: user} instead"
Progress = Callable[[str], None]


class InitConfig(Config):
    """Which files to look at and where to write."""

    interactions: DataPath = Field(
        description="a Parquet, CSV or JSON-lines file, folder or glob; or the folder of MovieLens, KuaiRand or MIND"
    )
    items: DataPath | None = Field(None, description="items, the same formats")
    users: DataPath | None = Field(None, description="users, the same formats")
    out: DataPath = Field("rayrank-dataset", description="local folder for dataset.yaml and a config of every job")
    name: str | None = Field(None, description="name that every table of results shows; null: the folder's")
    keys: KeyConfig = Field(default_factory=KeyConfig, description="columns you name yourself")
    overwrite: bool = Field(False, description="replace files of an earlier init")


@dataclass(frozen=True)
class InitResult:
    """What was written; ``dataset`` is empty for a published layout, which describes itself."""

    dataset: str
    prepare: str
    jobs: tuple[str, ...]  # configs of the jobs after prepare, in their order
    written: bool
    warnings: tuple[str, ...]

    def summary(self) -> list[str]:
        """Where the files are and what to do next."""
        verb = "wrote" if self.written else "unchanged:"
        lines = [f"{verb} {path}" for path in (self.dataset, self.prepare) if path]
        lines.append(f"{verb} beside them: {', '.join(Path(path).name for path in self.jobs)}")
        lines += [f"warning: {w}" for w in self.warnings]
        return [*lines, f"next: read the comments, then rayrank validate {self.prepare}"]


@dataclass(frozen=True)
class _Found:
    """Everything guessed, ready to be written."""

    schema: DatasetSchema
    comments: Mapping[str, str]
    keys: Keys
    left_out: Mapping[str, Sequence[str]]
    outcomes: Sequence[RegressionTask]
    maybe_context: Sequence[Feature]
    warnings: tuple[str, ...]


def init(config: InitConfig, progress: Progress) -> InitResult:
    """Look at a sample of each file, guess a schema and write it with its reasons.

    Raises:
        ConfigError: unreadable files, no key or time column, or files of an earlier init that differ.
    """
    if "://" in config.out:
        raise ConfigError("out", config.out, "init writes to a local folder", "give a local folder")
    dataset, prepare = Path(config.out, "dataset.yaml"), Path(config.out, "prepare.yaml")
    kind = published_layout(config.interactions)
    if kind is not None:
        progress(f"this folder is {kind} in its published layout")
        source = {"kind": kind, "path": config.interactions}
        schema = open_source(parse(PrepareConfig, {"source": source, "path": _shards(config)}).source).schema
        texts, described = {prepare: _published_yaml(config, kind)}, ""
        warnings: tuple[str, ...] = ()
        entities: dict[str, str] = {}
    else:
        progress("reading a sample of the files")
        found = _guess(config)
        schema, warnings, described = found.schema, found.warnings, str(dataset)
        entities = _entities(config, found)
        texts = {dataset: _dataset_yaml(found), prepare: _prepare_yaml(config, found, str(dataset))}
    jobs = job_files(config.out, _shards(config), schema, entities)
    written = _write(texts | jobs, config.overwrite)
    if described:
        load(DatasetSchema, dataset)
    return InitResult(described, str(prepare), tuple(map(str, jobs)), written, warnings)


def published_layout(folder: str) -> str | None:
    """The kind of source whose published files lie in a folder; None: somebody's own tables."""
    for kind, name in (("movielens", "ratings.dat"), ("mind", "behaviors.tsv"), ("kuairand", "log_standard_*.csv")):
        if storage.found(storage.join(folder, name)):
            return kind
    return None


def _write(texts: Mapping[Path, str], overwrite: bool) -> bool:
    """Write what changed; refuse to replace what differs unless told to."""
    changed = [p for p, text in texts.items() if not p.is_file() or p.read_text(encoding="utf-8") != text]
    kept = [p for p in changed if p.is_file()]
    if kept and not overwrite:
        fix = "keep it and go on with validate, choose another out, or set overwrite=true"
        raise ConfigError(str(kept[0]), None, "this file exists and differs from what init would write", fix)
    for path in changed:
        storage.write_bytes(str(path), texts[path].encode())
    return bool(changed)


def _guess(config: InitConfig) -> _Found:
    paths = {"interactions": config.interactions, "items": config.items, "users": config.users}
    raws = {kind: Raw.of(kind, p, sample(p) if p is not None else pa.table({})) for kind, p in paths.items()}
    tables = {kind: raw.table for kind, raw in raws.items()}
    events, items, users = (raw.columns for raw in raws.values())
    if not tables["interactions"].num_rows:
        raise ConfigError("interactions", config.interactions, "interactions must not be empty", "check the files")
    keys = choose_keys(config.keys, raws)
    user, item, time = keys.user, keys.item, keys.time
    request = guess.guess_request(events)
    used = [user.name, item.name, time.name, *([request] if request else [])]
    labels = guess.guess_tasks(events, used)
    tasks: list[Task] = [task for task, _ in labels] or [BinaryTask(name="click", column=EVERY_ROW)]
    positive = next(task for task in tasks if isinstance(task, BinaryTask))
    items_key, users_key = (key.name if key else "" for key in (keys.items_item, keys.users_user))
    tasks += guess.guess_profiles(users, [users_key])
    tasks.append(RetrievalTask(name=f"next_{positive.name}", positive=positive.name))
    title, text, text_columns = guess.guess_text(items, [items_key])
    context, left_events = guess.guess_features(tables["interactions"], events, [*used, *(t.column for t, _ in labels)])
    item_features, left_items = guess.guess_features(tables["items"], items, [items_key, *text_columns])
    user_features, left_users = guess.guess_features(tables["users"], users, [users_key])
    schema = DatasetSchema(
        name=config.name or Path(config.out).name,
        user_id=user.name,
        item_id=item.name,
        timestamp=time.name,
        time_unit=keys.time_unit,  # type: ignore[arg-type]
        request_id=request,
        tasks=tuple(tasks),
        user_features=tuple(user_features),
        item_features=tuple(item_features),
        context_features=tuple(f for f in context if guess.known_beforehand(f)),
        text=text,
        title=title,
        split={"kind": "time"},  # type: ignore[arg-type]
        sampled_negatives=0 if labels else NEGATIVES,
    )
    comments = {"user_id": user.reason, "item_id": item.reason, "timestamp": time.reason}
    comments |= {task.name: reason for task, reason in labels}
    left = {"interactions": left_events, "items": left_items, "users": left_users}
    outcomes = guess.guess_outcomes(events, [*used, *(task.column for task, _ in labels)])
    told = {task.column for task in outcomes}
    maybe = [f for f in context if not guess.known_beforehand(f) and f.column not in told]
    warnings = _warnings(schema, config, tables["interactions"])
    return _Found(schema, comments, keys, left, outcomes, maybe, warnings)


def _warnings(schema: DatasetSchema, config: InitConfig, events: pa.Table) -> tuple[str, ...]:
    found = []
    if schema.sampled_negatives:
        found.append(sampled_warning(schema))
    if schema.text is None:
        why = "no items table" if config.items is None else "no text column in the items table"
        found.append(f"{why}: the teacher will know items by id and attributes only")
    new = new_in_test(events, schema)
    if new >= NEARLY_ALL:
        found.append(f"{new:.0%} of {NEW_USERS}")
    return tuple(found)


def _dataset_yaml(found: _Found) -> str:
    schema = found.schema
    lines = [
        "# What the columns of your data mean. Written by `init` from a sample of your files: read it, correct it.",
        "# Every key is described in docs/data_format.md.",
        f"name: {one_line(schema.name)}  # shown in every table of results",
        "",
        "# Keys and time.",
        f"user_id: {one_line(schema.user_id)}  # {found.comments['user_id']}",
        f"item_id: {one_line(schema.item_id)}  # {found.comments['item_id']}",
        f"timestamp: {one_line(schema.timestamp)}  # {found.comments['timestamp']}",
        f"time_unit: {schema.time_unit}  # s, ms, us, ns or auto: of times that are numbers",
    ]
    if schema.request_id:
        lines.append(f"request_id: {one_line(schema.request_id)}  # impressions of one request never see each other")
    lines += ["", "# What is predicted. Missing labels are fine: they train nothing.", "tasks:"]
    lines += [_task_line(task, found) for task in schema.tasks]
    if found.outcomes:
        lines += [
            "  # Numbers that look like an outcome: uncomment what is to be predicted. low and high are those of the",
            "  # sample; no label may be outside them.",
            *(f"  # - {_values(task)}" for task in found.outcomes),
        ]
    lines += _feature_lines("user_features", schema.user_features, found.left_out["users"])
    lines += _feature_lines("item_features", schema.item_features, found.left_out["items"])
    lines += _feature_lines("context_features", schema.context_features, found.left_out["interactions"])
    if found.maybe_context:
        lines += [
            "  # Not used: these may be what the user did AFTER seeing the item (play time, basket size). They would",
            "  # give the answer away. Uncomment only what is known before the item is shown.",
            *(f"  # - {_values(f)}" for f in found.maybe_context),
        ]
    lines += ["", "# Item text for the teacher's encoder; a clause whose columns are empty is left out."]
    lines.append(f"text: {one_line(schema.text)}")
    lines.append(f"title: {one_line(schema.title)}  # shown to people")
    lines += [
        "",
        "# How targets divide: time (the last 10 % test, the 10 % before validate), user (the last of each user),",
        "# or boundary (fixed instants: valid_from, test_from in unix seconds).",
        *(f"# WARNING: {warning}" for warning in found.warnings if NEW_USERS in warning),
        "split: {kind: time, valid: 0.1, test: 0.1}",
    ]
    if schema.sampled_negatives:
        lines += [
            "",
            "# Clicks only: every row is a positive; this many items per row, drawn uniformly, become negatives.",
        ]
        lines += ["# WARNING: " + found.warnings[0]]
        lines += [f"sampled_negatives: {schema.sampled_negatives}"]
    return "\n".join(lines) + "\n"


def _task_line(task: Task, found: _Found) -> str:
    reason = found.comments.get(task.name, "")
    match task:
        case BinaryTask() if task.column == EVERY_ROW:
            reason = "no label column found: '*' makes every row a positive"
        case MulticlassTask():
            reason = "a user attribute, predicted from the history alone"
        case RetrievalTask():
            reason = "the next positive item among the whole catalogue"
        case BinaryTask() | RegressionTask():
            pass
    return f"  - {_values(task)}  # {reason}"


def _feature_lines(title: str, features: Sequence[Feature], left_out: Sequence[str]) -> list[str]:
    lines = ["", f"{title}:{'' if features else ' []'}"]
    for feature in features:
        lines.append(f"  - {_values(feature)}")
    if left_out:
        lines.append(f"  # not used (constant, empty, free text or nearly all different): {', '.join(left_out)}")
    return lines


def _entities(config: InitConfig, found: _Found) -> dict[str, str]:
    """The raw tables of items and users, as the configs of prepare and export_served name them."""
    named = {"items": config.items, "users": config.users}
    own = {"items_key": (found.keys.items_item, found.schema.item_id)}
    own["users_key"] = (found.keys.users_user, found.schema.user_id)
    named |= {name: key.name for name, (key, usual) in own.items() if key is not None and key.name != usual}
    return {key: value for key, value in named.items() if value is not None}


def _prepare_yaml(config: InitConfig, found: _Found, dataset: str) -> str:
    rows = {"kind": "tables", "dataset": dataset, "interactions": config.interactions}
    rows |= _entities(config, found)
    lines = ["# rayrank prepare THIS_FILE", "source:"]
    own = {"items_key": found.keys.items_item, "users_key": found.keys.users_user}
    reasons = {name: f"  # {key.reason}" for name, key in own.items() if key is not None}
    lines += [f"  {key}: {one_line(value)}{reasons.get(key, '')}" for key, value in rows.items()]
    lines += [f"path: {one_line(_shards(config))}  # where the prepared dataset goes"]
    return "\n".join(lines) + "\n"


def _published_yaml(config: InitConfig, kind: str) -> str:
    lines = [
        "# rayrank validate THIS_FILE, then rayrank prepare THIS_FILE",
        "source:",
        f"  kind: {kind}  # columns, tasks and split are those of docs/data_format.md; every key may be set here",
        f"  path: {one_line(config.interactions)}",
        f"path: {one_line(_shards(config))}  # where the prepared dataset goes",
    ]
    return "\n".join(lines) + "\n"


def _shards(config: InitConfig) -> str:
    return str(Path(config.out, "shards"))


def _values(entry: Task | Feature) -> str:
    """A task or feature on one line; of a regression always with its limits."""
    limits = {"low": entry.low, "high": entry.high} if isinstance(entry, RegressionTask) else {}
    said = entry.model_dump(mode="json", exclude_defaults=True, exclude=set(limits))
    return one_line({"kind": entry.kind} | said | limits)
