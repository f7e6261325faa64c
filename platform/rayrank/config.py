"""Typed configuration: one loader for jobs, Tune trials and tests.

Knows YAML, dotted overrides and how to explain a mistake. Knows nothing about what the configs mean:
each config class lives beside its owner and derives from :class:`Config`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from rayrank.mistakes import explain, keys_of_kind

_log = logging.getLogger(__name__)


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
        got = "" if value is None else f"got {_short(value)}; "
        super().__init__(f"{path}: {got}{rule}; fix: {fix}")

    def as_dict(self) -> dict[str, Any]:
        """The four parts by name: what crosses a process as data makes an equal error with ``ConfigError(**parts)``."""
        return {"path": self.path, "value": self.value, "rule": self.rule, "fix": self.fix}

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, object, str, str]]:
        """Copied and sent between processes by its four parts, not by its text."""
        return type(self), (self.path, self.value, self.rule, self.fix)


C = TypeVar("C", bound=Config)


def load(cls: type[C], path: str | Path | None, overrides: Sequence[str] = ()) -> C:
    """Read ``path`` (YAML; None means defaults only), apply ``a.b=c`` overrides in order and validate.

    ``a.kind=c`` that changes the kind of a section drops the keys that the new kind does not have, and warns.

    Raises:
        ConfigError: unreadable file, malformed override, unknown key (with the nearest key) or a bad value.
    """
    raw: dict[str, Any] = {}
    if path is not None:
        raw = read_yaml(path)
    for text in overrides:
        _apply(cls, raw, text)
    origin = str(path) if path is not None else cls.__name__
    try:
        return parse(cls, raw, origin)
    except ConfigError as error:
        place = error.path.removeprefix(f"{origin}: ")
        keys = [text.partition("=")[0] for text in reversed(overrides)]
        made = next((key for key in keys if f"{place}.".startswith(f"{key}.")), None)
        if made is None:
            raise
        where = f"override {made}=…" + ("" if place == made else f": {place}")
        raise ConfigError(where, error.value, error.rule, error.fix) from None


def parse(cls: type[C], raw: Mapping[str, Any], origin: str = "config") -> C:
    """Validate a plain mapping against ``cls``; mistakes become :class:`ConfigError` (the first one found)."""
    try:
        return cls.model_validate(raw)
    except ValidationError as error:
        path, value, rule, fix = explain(cls, raw, error)
        raise ConfigError(f"{origin}: {path}", value, rule, fix) from None


def to_yaml(config: Config) -> str:
    """The resolved config as YAML that :func:`load` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def digest(config: Config) -> str:
    """A short stable hash (16 hex digits of sha256) of the resolved config, for resumable runs."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def path_fields(config: Config, prefix: str = "") -> dict[str, str]:
    """Dotted name -> value of every :data:`DataPath` that is set, also inside nested configs, lists and mappings."""
    found: dict[str, str] = {}
    for name, field in type(config).model_fields.items():
        marked = _marks_path(field.annotation, field.metadata)
        found |= _paths_in(getattr(config, name), f"{prefix}{name}", marked)
    return found


def replace(config: C, changes: Mapping[str, Any]) -> C:
    """A validated copy with dotted ``changes`` applied (``{"objective.weights.like": 2.0}``)."""
    raw = config.model_dump(mode="json")
    for dotted, value in changes.items():
        _set(raw, dotted, value)
    return parse(type(config), raw, origin=type(config).__name__)


class _Loader(yaml.SafeLoader):
    """YAML with gaps closed: ``1e-3`` is a number, a key given twice and a value that cannot be are YAML errors."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: ARG002
        try:
            return super().construct_object(node, deep=True)  # deep: an alias within its own anchor is an error
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # 45th of a month
            raise yaml.constructor.ConstructorError(None, None, f"no such value: {error}", node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                rule = "a key must be a text; put braces and brackets that are meant as text in quotes"
                raise yaml.constructor.ConstructorError(None, None, rule, key.start_mark)
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, f"key '{key.value}' is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: no such file, unreadable, not YAML, or not a mapping.
    """
    try:
        return yaml_mapping(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(str(path), None, f"must be readable ({error.strerror})", "check the path") from None


def yaml_mapping(text: bytes, path: str) -> dict[str, Any]:
    """The mapping in a YAML text that was found at ``path``.

    Raises:
        ConfigError: not UTF-8, not YAML, or not a mapping.
    """
    try:
        raw = _parsed(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(path, None, f"must be UTF-8 ({error.reason})", "save it as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else path
        raise ConfigError(where, None, "file must be valid YAML", str(getattr(error, "problem", error))) from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(path, raw, "top level must be a mapping", "write 'key: value' lines")
    return raw


def _parsed(text: str) -> Any:
    """What a YAML text says.

    Raises:
        yaml.YAMLError: it is none.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError("nested too deep") from None


def _apply(cls: type[Config], raw: dict[str, Any], text: str) -> None:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise ConfigError(text, text, "an override must read a.b=value", "for example optimizer.learning_rate=0.001")
    try:
        parsed = _parsed(value) if value else ""
    except yaml.YAMLError:
        parsed = value
    section = _at(raw, key.removesuffix(".kind")) if key.endswith(".kind") else None
    if section and section.get("kind") != parsed:
        _drop_foreign(section, keys_of_kind(cls, key.split(".")[:-1], str(parsed)), text)
    _set(raw, key, parsed)


def _at(raw: Any, dotted: str) -> dict[str, Any] | None:
    for part in dotted.split("."):
        raw = raw.get(part) if isinstance(raw, dict) else None
    return raw if isinstance(raw, dict) else None


def _drop_foreign(section: dict[str, Any], known: frozenset[str], override: str) -> None:
    foreign = [key for key in section if key not in known] if known else []
    for key in foreign:
        del section[key]
    if foreign:
        _log.warning("%s: left out what that kind does not have: %s", override, ", ".join(foreign))


def _set(raw: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    node: Any = raw
    for i, part in enumerate(parents):
        at = ".".join(parents[: i + 1])
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = {}
        node = node[_position(node, part, at)] if isinstance(node, list) else node[part]
        if not isinstance(node, dict | list):
            raise ConfigError(at, node, "this value has no keys below it", f"shorten the override '{dotted}'")
    if isinstance(node, list):
        node[_position(node, last, dotted)] = value
    else:
        node[last] = value


def _position(items: list[Any], text: str, path: str) -> int:
    if not text.isdecimal() or int(text) >= len(items):
        raise ConfigError(path, text, f"must be a position in a list of {len(items)}", "count from 0")
    return int(text)


def _paths_in(value: Any, dotted: str, marked: bool) -> dict[str, str]:
    if isinstance(value, Config):
        return path_fields(value, f"{dotted}.")
    if isinstance(value, str):
        return {dotted: value} if marked else {}
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, tuple | list) else ()
    return {k: v for key, inner in items for k, v in _paths_in(inner, f"{dotted}.{key}", marked).items()}


def _marks_path(annotation: Any, metadata: Sequence[Any]) -> bool:
    if any(isinstance(m, PathMarker) for m in metadata):
        return True
    return any(_marks_path(a, getattr(a, "__metadata__", ())) for a in get_args(annotation) if a is not type(None))


def _short(value: object) -> str:
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):  # such as a mapping by dates
        text = str(value)
    return text if len(text) <= 80 else text[:77] + "…"
