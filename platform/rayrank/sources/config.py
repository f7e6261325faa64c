"""The union of all source configs, and how a config becomes a source."""

from __future__ import annotations

import importlib
from typing import Annotated, Any, Literal, assert_never

from pydantic import Field

from rayrank.config import Config, ConfigError
from rayrank.sources.kuairand import KuaiRand, KuaiRandConfig
from rayrank.sources.mind import Mind, MindConfig
from rayrank.sources.movielens import MovieLens, MovieLensConfig
from rayrank.sources.source import Source
from rayrank.sources.synthetic import Synthetic, SyntheticConfig
from rayrank.sources.tables import Tables, TablesConfig


class PythonSourceConfig(Config):
    """Your own source: a class called with ``options`` that follows :class:`rayrank.sources.source.Source`."""

    kind: Literal["python"] = "python"
    target: str = Field(description="package:Class, importable on every worker", pattern=r"^[\w.]+:\w+$")
    allow: tuple[str, ...] = Field((), description="targets this config may run; the target must be among them")
    options: dict[str, Any] = Field({}, description="keyword arguments of the class")


SourceConfig = Annotated[
    MovieLensConfig | KuaiRandConfig | MindConfig | SyntheticConfig | TablesConfig | PythonSourceConfig,
    Field(discriminator="kind"),
]


def open_source(config: SourceConfig) -> Source:
    """The source a config describes; cheap, reads at most small files.

    Raises:
        ConfigError: something of it is missing or refused.
    """
    match config:
        case MovieLensConfig():
            return MovieLens(config)
        case KuaiRandConfig():
            return KuaiRand(config)
        case MindConfig():
            return Mind(config)
        case SyntheticConfig():
            return Synthetic(config)
        case TablesConfig():
            return Tables(config)
        case PythonSourceConfig():
            return _python_source(config)
        case _:
            assert_never(config)


def _python_source(config: PythonSourceConfig) -> Source:
    if config.target not in config.allow:
        rule = "code named by a config runs only when the config also allows it"
        raise ConfigError("source.target", config.target, rule, f"add '{config.target}' to source.allow")
    module, _, name = config.target.partition(":")
    try:
        made = getattr(importlib.import_module(module), name)(**config.options)
    except (ImportError, AttributeError, TypeError) as error:
        rule = f"target must be an importable class that takes the options ({error})"
        raise ConfigError("source.target", config.target, rule, "check package, class and options") from None
    source: Source = made
    return source
