"""Search spaces as data: dotted config path → sampler, checked against the config class before anything runs.

Knows samplers and how Ray Tune draws from them. Knows nothing about what the paths mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Annotated, Any, Literal, assert_never

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from rayrank.config import Config, ConfigError, replace, yaml_mapping

Value = bool | int | float | str | None


class Uniform(Config):
    """A real number, evenly."""

    kind: Literal["uniform"] = "uniform"
    low: float = Field(description="smallest value")
    high: float = Field(description="largest value")

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        if not self.low < self.high:
            raise ValueError("low must be less than high")
        return self


class LogUniform(Config):
    """A positive real number, evenly in its logarithm."""

    kind: Literal["loguniform"] = "loguniform"
    low: float = Field(gt=0, description="smallest value")
    high: float = Field(gt=0, description="largest value")

    @model_validator(mode="after")
    def _ordered(self) -> LogUniform:
        if not self.low < self.high:
            raise ValueError("low must be less than high")
        return self


class RandInt(Config):
    """A whole number in low..high, both included."""

    kind: Literal["randint"] = "randint"
    low: int = Field(description="smallest value")
    high: int = Field(description="largest value")

    @model_validator(mode="after")
    def _ordered(self) -> RandInt:
        if not self.low < self.high:
            raise ValueError("low must be less than high")
        return self


class Choice(Config):
    """One of some values, evenly."""

    kind: Literal["choice"] = "choice"
    values: tuple[Value, ...] = Field(description="what is drawn from", min_length=1)


class Grid(Config):
    """Every value in turn, combined with every value of the other grids; for search.algorithm grid."""

    kind: Literal["grid"] = "grid"
    values: tuple[Value, ...] = Field(description="what is gone through", min_length=1)


AnySampler = Uniform | LogUniform | RandInt | Choice | Grid
Sampler = Annotated[AnySampler, Field(discriminator="kind")]
Space = Mapping[str, AnySampler]


def parse_space(raw: Mapping[str, Any], origin: str) -> Space:
    """Samplers by dotted path.

    Raises:
        ConfigError: an empty space or a malformed sampler.
    """
    if not raw:
        raise ConfigError(origin, None, "a search space needs at least one 'path: {kind: …}'", "see tune_spaces/")
    found: dict[str, Any] = {}
    for path, text in raw.items():
        try:
            found[path] = TypeAdapter(Sampler).validate_python(text)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(p) for p in first["loc"][1:]) or "sampler"
            fix = "for example {kind: loguniform, low: 0.5, high: 8.0}"
            raise ConfigError(f"{origin}: {path}", text, f"{key}: {first['msg']}", fix) from None
    return found


def read_space(path: str) -> Space:
    """The samplers of a YAML file."""
    from rayrank.sources.storage import read_bytes

    return parse_space(yaml_mapping(read_bytes(path), path), path)


def check_space(space: Space, base: Config, origin: str) -> None:
    """Every path must exist in ``base`` and take the extreme values of its sampler.

    Raises:
        ConfigError: naming the path and the value that does not fit.
    """
    for path, sampler in space.items():
        for value in extremes(sampler):
            try:
                changed = replace(base, {path: value})
            except ConfigError as error:
                rule = f"a sampled value must fit {type(base).__name__} ({error.rule})"
                raise ConfigError(f"{origin}: {path}", value, rule, error.fix) from None
            kept = _at(changed, path)
            if kept != value:
                rule = f"a sampled value must be kept as it is; {type(base).__name__} makes it {kept!r}"
                raise ConfigError(f"{origin}: {path}", value, rule, "use a sampler of the field's type")


def draws(space: Space) -> dict[str, Any]:
    """What Ray Tune draws from, by path; of a grid the list of its values."""
    from ray import tune

    def draw(sampler: AnySampler) -> Any:
        match sampler:
            case Uniform():
                return tune.uniform(sampler.low, sampler.high)
            case LogUniform():
                return tune.loguniform(sampler.low, sampler.high)
            case RandInt():
                return tune.randint(sampler.low, sampler.high + 1)
            case Choice():
                return tune.choice(list(sampler.values))
            case Grid():
                return list(sampler.values)
            case _:
                assert_never(sampler)

    return {path: draw(sampler) for path, sampler in space.items()}


def drawn(space: Space, count: int, seed: int) -> list[dict[str, Value]]:
    """``count`` settings; the first ones are the same for any count."""
    import numpy as np

    domains, generator = draws(space), np.random.RandomState(seed)
    settings = [{path: d.sample(random_state=generator) for path, d in domains.items()} for _ in range(count)]
    return [{path: getattr(value, "item", lambda v=value: v)() for path, value in one.items()} for one in settings]


def walked(space: Space) -> list[dict[str, Value]]:
    """Every combination of grids; the last path turns fastest."""
    values = [sampler.values for sampler in space.values() if isinstance(sampler, Grid)]
    return [dict(zip(space, combination, strict=True)) for combination in product(*values)]


def own_values(space: Space, base: Config) -> dict[str, Value] | None:
    """What ``base`` itself has at the paths; None when one has nothing there."""
    own = {path: _at(base, path) for path in space}
    return None if any(value is None for value in own.values()) else own


def holds(space: Space, values: Mapping[str, Value]) -> bool:
    """Whether the samplers could draw these values."""
    return all(_holds(sampler, values.get(path)) for path, sampler in space.items())


def clipped(space: Space, values: Mapping[str, Value]) -> dict[str, Value]:
    """The values, numbers moved into the range of their sampler."""
    ranges = {path: s for path, s in space.items() if isinstance(s, Uniform | LogUniform | RandInt)}
    return {
        path: min(max(value, ranges[path].low), ranges[path].high)
        if path in ranges and isinstance(value, int | float)
        else value
        for path, value in values.items()
    }


def _holds(sampler: AnySampler, value: Value) -> bool:
    if isinstance(sampler, Choice | Grid):
        return value in sampler.values
    return isinstance(value, int | float) and sampler.low <= value <= sampler.high


def extremes(sampler: AnySampler) -> Iterator[Value]:
    """The ends of its range, or all of its values."""
    if isinstance(sampler, Choice | Grid):
        yield from sampler.values
    else:
        yield sampler.low
        yield sampler.high


def _at(config: Config, dotted: str) -> Any:
    """What is there; None for a path that ends at nothing."""
    node: Any = config
    for part in dotted.split("."):
        node = node.get(part) if isinstance(node, Mapping) else getattr(node, part, None)
    return node
