"""Typed configuration: one loader for jobs, Tune trials and tests.

Knows YAML, dotted overrides and how to explain a mistake. Knows nothing about what the configs mean:
each config class lives beside its owner and derives from :class:`Config`.
"""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class Config(BaseModel):
    """Base of every config: frozen, unknown keys refused, defaults validated."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class PathMarker:
    """Annotation that tells the entry points to resolve a string field against the base folder."""


DataPath = Annotated[str, PathMarker()]
"""A local path or a filesystem URL (``s3://…``). Relative ones are resolved by the entry point."""


class ConfigError(ValueError):
    """A mistake of the user: where (``path``), what was found, which rule it breaks, how to mend it."""

    def __init__(self, path: str, value: object, rule: str, fix: str) -> None:
        self.path, self.value, self.rule, self.fix = path, value, rule, fix
        super().__init__(f"{path}: got {_short(value)}; {rule}; fix: {fix}")


C = TypeVar("C", bound=Config)


def load(cls: type[C], path: str | Path | None, overrides: Sequence[str] = ()) -> C:
    """Read ``path`` (YAML; None means defaults only), apply ``a.b=c`` overrides in order and validate.

    Raises:
        ConfigError: unreadable file, malformed override, unknown key (with the nearest key) or a bad value.
    """
    raw: dict[str, Any] = {}
    if path is not None:
        raw = _read_yaml(Path(path))
    for text in overrides:
        _apply(raw, text)
    return parse(cls, raw, origin=str(path) if path is not None else cls.__name__)


def parse(cls: type[C], raw: Mapping[str, Any], origin: str = "config") -> C:
    """Validate a plain mapping against ``cls``; mistakes become :class:`ConfigError` (the first one found)."""
    try:
        return cls.model_validate(raw)
    except ValidationError as error:
        raise explain(cls, raw, error, origin) from None


def to_yaml(config: Config) -> str:
    """The resolved config as YAML that :func:`load` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def digest(config: Config) -> str:
    """A short stable hash (16 hex digits of sha256) of the resolved config, for resumable runs."""
    import hashlib

    text = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def explain(cls: type[BaseModel], raw: Mapping[str, Any], error: ValidationError, origin: str) -> ConfigError:
    """Turn pydantic's report into one path, value, rule and fix."""
    first = min(error.errors(), key=lambda e: (e["type"] != "extra_forbidden", len(e["loc"])))
    loc = [part for part in first["loc"] if not _is_tag(raw, first["loc"], part)]
    path = ".".join(str(part) for part in loc) or "(root)"
    where = f"{origin}: {path}"
    if first["type"] == "extra_forbidden":
        keys = _keys_at(cls, raw, first["loc"][:-1])
        near = difflib.get_close_matches(str(loc[-1]), keys, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "remove it"
        return ConfigError(where, first["input"], f"unknown key; known keys: {', '.join(keys) or '(none)'}", hint)
    if first["type"] == "missing":
        return ConfigError(where, None, "required key is missing", f"add '{path}: …'")
    expected = first.get("ctx", {}).get("expected")
    fix = f"use one of {expected}" if expected else "give a value of that kind"
    if first["type"] == "union_tag_invalid":
        fix = f"use one of {first['ctx']['expected_tags']}"
    return ConfigError(where, first["input"], first["msg"].removeprefix("Value error, "), fix)


def path_fields(config: Config, prefix: str = "") -> dict[str, str]:
    """Dotted name -> value of every field annotated :data:`DataPath` that is set, nested configs included."""
    found: dict[str, str] = {}
    for name, field in type(config).model_fields.items():
        value, dotted = getattr(config, name), f"{prefix}{name}"
        if isinstance(value, Config):
            found |= path_fields(value, f"{dotted}.")
        elif isinstance(value, str) and _marks_path(field.annotation, field.metadata):
            found[dotted] = value
    return found


def replace(config: C, changes: Mapping[str, Any]) -> C:
    """A validated copy with dotted ``changes`` applied (``{"objective.weights.like": 2.0}``)."""
    raw = config.model_dump(mode="json")
    for dotted, value in changes.items():
        _set(raw, dotted, value)
    return parse(type(config), raw, origin=type(config).__name__)


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(str(path), None, "config file must exist", "check the path (it is relative to the current folder)")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}", None, "file must be valid YAML", str(getattr(error, "problem", error))) from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(str(path), type(raw).__name__, "top level must be a mapping", "write 'key: value' lines")
    return raw


def _apply(raw: dict[str, Any], text: str) -> None:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise ConfigError(text, text, "an override must read a.b=value", "for example optimizer.learning_rate=0.001")
    try:
        parsed = yaml.safe_load(value) if value else ""
    except yaml.YAMLError:
        parsed = value
    _set(raw, key, parsed)


def _set(raw: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    node: Any = raw
    for i, part in enumerate(parents):
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = {}
        try:
            node = node[int(part)] if isinstance(node, list) else node[part]
        except (ValueError, IndexError):
            raise ConfigError(".".join(parents[: i + 1]), part, "no such list position", "use 0-based numbers") from None
        if not isinstance(node, dict | list):
            raise ConfigError(".".join(parents[: i + 1]), node, "this value has no keys below it", "shorten the override")
    if isinstance(node, list):
        node[int(last)] = value
    else:
        node[last] = value


def _marks_path(annotation: Any, metadata: Sequence[Any]) -> bool:
    if any(isinstance(m, PathMarker) for m in metadata):
        return True
    return any(_marks_path(a, getattr(a, "__metadata__", ())) for a in get_args(annotation) if a is not type(None))


def _is_tag(raw: Any, loc: Sequence[Any], part: Any) -> bool:
    """Pydantic puts a union's tag into the location; it is no key of the file, so leave it out."""
    node: Any = raw
    for step in loc:
        if step is part:
            return isinstance(node, dict) and part not in node and node.get("kind") == part
        if isinstance(node, dict) and step in node:
            node = node[step]
        elif isinstance(node, list) and isinstance(step, int) and step < len(node):
            node = node[step]
    return False


def _keys_at(cls: type[BaseModel], raw: Any, loc: Sequence[Any]) -> list[str]:
    """Names of the fields allowed at ``loc``, following nested models, lists and tagged unions."""
    options: list[Any] = [cls]
    for step in loc:
        tagged = [o for o in options if _tag(o) == step]
        if tagged:
            options = tagged
        elif isinstance(step, int):
            continue
        else:
            options = [m for o in options if step in o.model_fields for m in _models(o.model_fields[step].annotation)]
    return sorted({name for o in options for name in o.model_fields})


def _tag(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    literal = get_args(field.annotation) if field else ()
    return str(literal[0]) if literal else None


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, Annotated, list, tuple, dict):
        return [m for a in get_args(annotation) for m in _models(a)]
    return []


def _short(value: object) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "…"
