"""What to tell the user about a config that does not validate: one path, value, rule and fix.

Knows how pydantic reports errors and how config classes nest. Knows nothing about files or what the configs mean.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def explain(cls: type[BaseModel], raw: Mapping[str, Any], error: ValidationError) -> tuple[str, object, str, str]:
    """The mistake to mend first, as (path in the file, value found there, rule, fix)."""
    first = _most_specific(error.errors())
    loc = _file_location(raw, first["loc"], missing=first["type"] == "missing")
    path = ".".join(map(str, loc)) or "(root)"
    rule, fix = _rule_and_fix(cls, first, path)
    value = first["input"]
    if first["type"].startswith("union_tag"):
        value, path = first["ctx"].get("tag"), f"{path}.kind"
    return path, None if first["type"] == "missing" else value, rule, fix


def keys_of_kind(cls: type[BaseModel], loc: Sequence[str], kind: str) -> frozenset[str]:
    """Keys of the section at ``loc`` where it is of ``kind``; none where there is no such kind."""
    return frozenset(key for model in _models_at(cls, loc) if kind in _tags(model) for key in model.model_fields)


def _most_specific(errors: Sequence[Any]) -> Any:
    """The deepest report of a branch; unknown keys go first, as a misspelt key also makes its right name missing."""
    deepest = [e for e in errors if not any(_below(other["loc"], e["loc"]) for other in errors)]
    order = {"extra_forbidden": 0, "missing": 2}
    return min(deepest, key=lambda e: order.get(e["type"], 1))


def _below(loc: Sequence[Any], ancestor: Sequence[Any]) -> bool:
    return len(loc) > len(ancestor) and tuple(loc[: len(ancestor)]) == tuple(ancestor)


def _file_location(raw: Any, loc: Sequence[Any], missing: bool) -> list[Any]:
    """``loc`` without what pydantic adds to it (union tags, names of union members): keys of the file only."""
    node, found, tagged = raw, list[Any](), False
    for i, step in enumerate(loc):
        if isinstance(node, Mapping) and node.get("kind") == step and not tagged:
            tagged = True
        elif (isinstance(node, Mapping) and step in node) or (
            isinstance(node, list | tuple) and isinstance(step, int) and step < len(node)
        ):
            node, tagged = node[step], False
            found.append(step)
        elif missing and i == len(loc) - 1:
            found.append(step)
    return found


def _rule_and_fix(cls: type[BaseModel], first: Any, path: str) -> tuple[str, str]:
    kind, context, message = first["type"], first.get("ctx", {}), first["msg"].removeprefix("Value error, ")
    models, name = _models_at(cls, first["loc"][:-1]), str(first["loc"][-1]) if first["loc"] else ""
    match kind:
        case "extra_forbidden":
            keys = sorted({key for model in models for key in model.model_fields})
            near = difflib.get_close_matches(name, keys, n=1)
            rule = f"unknown key; known keys: {', '.join(keys) or '(none)'}"
            return rule, f"did you mean '{near[0]}'?" if near else "remove it"
        case "missing":
            text = next((m.model_fields[name].description for m in models if name in m.model_fields), None)
            return "required key is missing", f"add '{path}: …'" + (f" ({text})" if text else "")
        case "union_tag_invalid":
            near = difflib.get_close_matches(str(context["tag"]), _words(context["expected_tags"]), n=1)
            meant = f"did you mean '{near[0]}'? " if near else ""
            return f"unknown {context['discriminator']}", f"{meant}use one of {context['expected_tags']}"
        case "union_tag_not_found":
            tags = _all_tags(cls, first["loc"])
            return f"{context['discriminator']} is missing", f"add '{path}.kind: …', one of {', '.join(tags)}"
        case "literal_error" | "enum":
            near = difflib.get_close_matches(str(first["input"]), _words(context["expected"]), n=1)
            return message, f"did you mean '{near[0]}'?" if near else f"use one of {context['expected']}"
        case "string_type" if isinstance(first["input"], bool | int | float):
            return message, "put it in quotes (YAML reads no, yes, on, off and 12 as other kinds)"
        case "model_attributes_type" | "model_type" | "dict_type" if tags := _all_tags(cls, first["loc"]):
            return "must be a mapping", f"write '{path}.kind: …', one of {', '.join(tags)}"
        case "model_attributes_type" | "model_type" | "dict_type":
            return "must be a mapping", f"write its keys below it, for example in an override: {path}.KEY=…"
        case "value_error":
            return message, "change one of the two so that they agree" if isinstance(
                first["input"], dict
            ) else "change it"
    return message, f"give a value that fits, for example in an override: {path}=…"


def _words(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _models_at(cls: type[BaseModel], loc: Sequence[Any]) -> list[type[BaseModel]]:
    """The config classes that may stand at ``loc``, following fields, lists, mappings and tagged unions."""
    options: list[type[BaseModel]] = [cls]
    for step in loc:
        named = [o for o in options if step in _tags(o)]
        if named:
            options = named
            continue
        inner = [m for o in options if step in o.model_fields for m in _models(o.model_fields[step].annotation)]
        options = inner or options  # a list position, a mapping's key or the name of a union member: same classes
    return options


def _tags(model: type[BaseModel]) -> tuple[str, ...]:
    field = model.model_fields.get("kind")
    return tuple(map(str, get_args(field.annotation))) if field else ()


def _all_tags(cls: type[BaseModel], loc: Sequence[Any]) -> list[str]:
    return sorted({tag for model in _models_at(cls, loc) for tag in _tags(model)})


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [m for a in get_args(annotation) for m in _models(a)]
