"""Synthetic interactions with a known structure, so that what a model reaches can be compared with what is there.

``logit P(like) = user bias + item bias + strength · taste(user)·theme(item) + context``, where an item's theme can be
read from its text and a user's taste is one of a few archetypes plus a little noise, so that some thirty events tell
it. Users are made in blocks, each from its own seed: any range of blocks can be made anywhere, in any order, with
the same bytes. Knows how the data is made; knows nothing about shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from rayrank.config import Config
from rayrank.schema import (
    BinaryTask,
    CategoricalFeature,
    DatasetSchema,
    MulticlassTask,
    NumericFeature,
    RegressionTask,
    RetrievalTask,
    Split,
    UserSplit,
)
from rayrank.sources.source import Part, canonical
from rayrank.sources.split import share_of
from rayrank.sources.synthetic_text import MOODS, TOPICS, write_item, write_veiled_item

BLOCK_USERS = 256
POOL = 2048
"""Items one block of users draws from, in catalogues larger than this."""
ARCHETYPES = 6
AGE_GROUPS = ("18-29", "30-44", "45-59", "60+")
FORMATS = ("film", "series", "novel", "podcast")
DEVICES = ("phone", "tv", "laptop")
START = 1_700_000_000
_DEVICE_EFFECT = np.array([0.15, 0.0, -0.15])
_HOUR_EFFECT = 0.15


class SyntheticConfig(Config):
    """Size and nature of the generated data."""

    kind: Literal["synthetic"] = "synthetic"
    num_users: int = Field(1500, ge=10, description="users")
    num_items: int = Field(600, ge=60, description="items")
    num_rows: int = Field(60_000, ge=1000, description="interactions, exact")
    seed: int = Field(0, ge=0, description="equal seeds and sizes give equal bytes")
    signal: Literal["text_and_ids", "text_only", "veiled_text"] = Field(
        "text_and_ids",
        description="text_only: no biases, no context effect; taste is readable from item texts alone; veiled_text: "
        "from two words of each text, which a pretrained encoder's vectors hardly tell",
    )
    cold_items: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share of items that only valid and test events show; default 0 for text_and_ids, else 0.3",
    )
    strength: float = Field(1.4, gt=0, description="scale of taste · theme in the like logit")
    permute_texts: bool = Field(False, description="give every item another item's text: the control without signal")
    shuffle_labels: bool = Field(False, description="shuffle the training labels: the control without signal")
    hidden_share: float = Field(0.2, gt=0, lt=1, description="share of users whose profile labels training never sees")
    split: Split = Field(default_factory=UserSplit, description="how targets divide into train, valid and test")

    @property
    def cold_share(self) -> float:
        """``cold_items`` with its default."""
        return self.cold_items if self.cold_items is not None else (0.0 if self.signal == "text_and_ids" else 0.3)

    @model_validator(mode="after")
    def _feasible(self) -> SyntheticConfig:
        mean = self.num_rows / self.num_users
        if mean < 10:
            raise ValueError(f"num_rows / num_users is {mean:.1f}; it must be at least 10 for a taste to show")
        warm = min(self.num_items, POOL) * (1 - self.cold_share)
        if 1.5 * mean + 2 > warm:
            raise ValueError(
                f"{mean:.0f} events per user need at least {1.5 * mean + 2:.0f} training items; raise num_items"
            )
        if self.cold_share and not isinstance(self.split, UserSplit):
            raise ValueError("cold_items needs split.kind 'user': the generator must know which events are evaluated")
        if self.cold_share and 0.3 * mean + 4 > min(self.num_items, POOL) * self.cold_share:
            raise ValueError(
                "too few cold items for the valid and test events of a user; raise cold_items or num_items"
            )
        return self


@dataclass(frozen=True)
class World:
    """The hidden truth about items and archetypes."""

    topic_N: np.ndarray
    mood_N: np.ndarray
    theme_NF: np.ndarray  # centred topic and mood indicators
    bias_N: np.ndarray
    minutes_N: np.ndarray
    weight_N: np.ndarray  # how often an item is shown
    cold_N: np.ndarray
    taste_AF: np.ndarray


@dataclass(frozen=True)
class People:
    """A block of users."""

    archetype_U: np.ndarray
    taste_UF: np.ndarray
    bias_U: np.ndarray
    age_U: np.ndarray
    region_U: np.ndarray


class Synthetic:
    """See :class:`rayrank.sources.source.Source`."""

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config

    @property
    def schema(self) -> DatasetSchema:
        """Like, finish, stars, age group and the next liked item."""
        config = self.config
        genre = [CategoricalFeature(name="genre", column="genre")] if config.signal == "text_and_ids" else []
        return DatasetSchema(
            name=f"synthetic-{config.signal}",
            tasks=(
                BinaryTask(name="like", column="liked"),
                BinaryTask(name="finish", column="finished"),
                RegressionTask(name="stars", column="stars", low=1.0, high=5.0),
                MulticlassTask(
                    name="age_group", column="age_group", classes=AGE_GROUPS, hidden_share=config.hidden_share
                ),
                RetrievalTask(name="next_like", positive="like"),
            ),
            user_features=tuple(CategoricalFeature(name=n, column=n) for n in ("age_group", "region")),
            item_features=(
                CategoricalFeature(name="format", column="format"),
                NumericFeature(name="minutes", column="minutes"),
                *genre,
            ),
            context_features=(CategoricalFeature(name="device", column="device"),),
            text="{title}. {description}",
            title="title",
            split=config.split,
        )

    def inputs(self) -> str:
        """Nothing but the config decides the data."""
        return "generated"

    def items(self) -> pa.Table:
        """Titles and descriptions that tell topic and mood; format, minutes and (with ids) a noisy genre."""
        config, world = self.config, self.world
        rng = np.random.default_rng([config.seed, 2])
        write = write_veiled_item if config.signal == "veiled_text" else write_item
        texts = [write(rng, int(t), int(m)) for t, m in zip(world.topic_N, world.mood_N, strict=True)]
        if config.permute_texts:
            texts = [texts[i] for i in rng.permutation(len(texts))]
        told = np.where(rng.random(len(texts)) < 0.7, world.topic_N, rng.integers(len(TOPICS), size=len(texts)))
        columns = {
            "item_id": self._item_ids,
            "title": [title for title, _ in texts],
            "description": [description for _, description in texts],
            "format": [FORMATS[i] for i in rng.integers(len(FORMATS), size=len(texts))],
            "minutes": world.minutes_N,
        }
        if config.signal == "text_and_ids":
            columns["genre"] = [TOPICS[i].name for i in told]
        return pa.table(columns)

    def users(self) -> pa.Table:
        """Age group (leaning on taste) and region (telling nothing)."""
        blocks = [self._people(b) for b in range(self._num_blocks)]
        ages, regions = (np.concatenate([getattr(p, n) for p in blocks]) for n in ("age_U", "region_U"))
        return pa.table(
            {
                "user_id": _ids("u", 0, self.config.num_users),
                "age_group": pa.array([AGE_GROUPS[i] for i in ages]),
                "region": pa.array([f"region {i}" for i in regions]),
            }
        )

    def parts(self) -> list[Part]:
        """Ranges of user blocks of about a hundred thousand rows."""
        rows_per_block = max(1, self.config.num_rows // self._num_blocks)
        step = max(1, 100_000 // rows_per_block)
        parts = []
        for start in range(0, self._num_blocks, step):
            end = min(start + step, self._num_blocks)
            first = self._first_row(start)
            parts.append(Part(start=start, end=end, rows=self._first_row(end) - first, first_row=first))
        return parts

    def read(self, part: Part) -> Iterator[pa.Table]:
        """Canonical rows with the true logits beside them (``truth_<task>``, ``biases_<task>``)."""
        for block in range(part.start, part.end):
            raw, truth = self._events(block)
            table = canonical(self.schema, raw, self._first_row(block), "synthetic")
            for name, values in truth.items():
                table = table.append_column(name, pa.array(values.astype(np.float32)))
            yield table

    @cached_property
    def world(self) -> World:
        """Items and archetypes."""
        config, n = self.config, self.config.num_items
        rng = np.random.default_rng([config.seed, 1])
        topic, mood = rng.permutation(np.arange(n) % len(TOPICS)), rng.integers(len(MOODS), size=n)
        theme = np.concatenate([np.eye(len(TOPICS))[topic], 0.8 * np.eye(len(MOODS))[mood]], axis=1)
        ids = config.signal == "text_and_ids"
        return World(
            topic_N=topic,
            mood_N=mood,
            theme_NF=theme - theme.mean(axis=0),
            bias_N=rng.normal(0, 0.5, n) * ids,
            minutes_N=rng.integers(20, 180, n),
            weight_N=rng.lognormal(0, 0.7, n) if ids else np.ones(n),
            cold_N=rng.permutation(n) < round(config.cold_share * n),
            taste_AF=_archetypes(),
        )

    @cached_property
    def _item_ids(self) -> pa.Array:
        return _ids("i", 0, self.config.num_items)

    @property
    def _num_blocks(self) -> int:
        return -(-self.config.num_users // BLOCK_USERS)

    def _first_row(self, block: int) -> int:
        users = min(block * BLOCK_USERS, self.config.num_users)
        return self.config.num_rows * users // self.config.num_users

    def _people(self, block: int) -> People:
        config = self.config
        size = min(BLOCK_USERS, config.num_users - block * BLOCK_USERS)
        rng = np.random.default_rng([config.seed, 3, block])
        archetype = rng.integers(ARCHETYPES, size=size)
        taste = self.world.taste_AF[archetype]
        leaning = np.where(
            rng.random(size) < 0.8, archetype % len(AGE_GROUPS), rng.integers(len(AGE_GROUPS), size=size)
        )
        return People(
            archetype_U=archetype,
            taste_UF=taste + rng.normal(0, 0.05, taste.shape),
            bias_U=rng.normal(0, 0.2, size) * (config.signal == "text_and_ids"),
            age_U=leaning,
            region_U=rng.integers(8, size=size),
        )

    def _events(self, block: int) -> tuple[pa.Table, dict[str, np.ndarray]]:
        """Raw interactions of a block, by (user, time), and the true logits."""
        config, world, people = self.config, self.world, self._people(block)
        rng = np.random.default_rng([config.seed, 4, block])
        counts = _deal(rng, self._first_row(block + 1) - self._first_row(block), len(people.bias_U))
        user = np.repeat(np.arange(len(counts)), counts)
        evaluated = self._evaluated(counts)
        item = self._shown(rng, counts, evaluated)
        time = _times(rng, counts)
        device = rng.integers(len(DEVICES), size=len(user))
        affinity = config.strength * (people.taste_UF[user] * world.theme_NF[item]).sum(axis=1)
        context = np.zeros(len(user))
        length = np.zeros(len(user))
        if config.signal == "text_and_ids":
            context = _DEVICE_EFFECT[device] + _HOUR_EFFECT * np.sin((time % 86400) * (2 * np.pi / 86400))
            length = (100 - world.minutes_N[item]) / 160
        like_biases = people.bias_U[user] + world.bias_N[item]
        finish_biases = 0.8 * people.bias_U[user] + 0.5 * world.bias_N[item] + length
        truth = {
            "truth_like": like_biases + affinity + context,
            "truth_finish": finish_biases + 0.8 * affinity + context,
            "biases_like": like_biases,
            "biases_finish": finish_biases,
        }
        labels = np.stack(
            [
                rng.random(len(user)) < _sigmoid(truth["truth_like"]),
                rng.random(len(user)) < _sigmoid(truth["truth_finish"]),
                np.clip(np.round(3 + 0.7 * truth["truth_like"] + 0.6 * rng.normal(size=len(user))), 1, 5),
            ]
        ).astype(np.int64)
        if config.shuffle_labels:
            train = np.flatnonzero(~evaluated)
            labels[:, train] = labels[:, rng.permutation(train)]
        first_user = block * BLOCK_USERS
        raw = pa.table(
            {
                "user_id": _ids("u", first_user, first_user + len(counts)).take(pa.array(user)),
                "item_id": self._item_ids.take(pa.array(item)),
                "timestamp": time,
                "liked": labels[0],
                "finished": labels[1],
                "stars": labels[2],
                "device": pa.array(DEVICES).take(pa.array(device)),
            }
        )
        return raw, truth

    def _evaluated(self, counts: np.ndarray) -> np.ndarray:
        """Which events the user split makes valid or test targets (for other splits: none is known here)."""
        split = self.config.split
        if not isinstance(split, UserSplit):
            return np.zeros(int(counts.sum()), dtype=bool)
        held = np.minimum(share_of(counts, split.valid) + share_of(counts, split.test), counts)
        left = np.repeat(np.cumsum(counts), counts) - np.arange(int(counts.sum()))
        return np.asarray(left <= np.repeat(held, counts))

    def _shown(self, rng: np.random.Generator, counts: np.ndarray, evaluated: np.ndarray) -> np.ndarray:
        """An item for each event, no item twice for a user; cold items for evaluated events only."""
        cold = self.world.cold_N
        if not cold.any():
            return self._draw(rng, counts, np.arange(len(cold)))
        user = np.repeat(np.arange(len(counts)), counts)
        item = np.zeros(len(user), dtype=np.int64)
        for mask, pool in ((evaluated, np.flatnonzero(cold)), (~evaluated, np.flatnonzero(~cold))):
            item[mask] = self._draw(rng, np.bincount(user[mask], minlength=len(counts)), pool)
        return item

    def _draw(self, rng: np.random.Generator, counts: np.ndarray, pool: np.ndarray) -> np.ndarray:
        """``counts`` items of the pool for each user without repetition, by weight (Efraimidis and Spirakis 2006)."""
        if len(pool) > POOL:
            pool = np.sort(rng.choice(pool, POOL, replace=False))
        keys = rng.exponential(size=(len(counts), len(pool))) / self.world.weight_N[pool]
        most = int(counts.max(initial=0))
        best = np.argpartition(keys, min(most, len(pool) - 1), axis=1)[:, :most]
        order = np.argsort(np.take_along_axis(keys, best, axis=1), axis=1, kind="stable")
        ranked = np.take_along_axis(best, order, axis=1)
        # The heaviest items come first in key order; a second shuffle per user makes time independent of weight.
        return pool[_shuffled_rows(rng, ranked, counts)]


def _archetypes() -> np.ndarray:
    """Tastes that differ as much as they can: each loves two topics, dislikes two, and has a favourite mood."""
    topics, moods = len(TOPICS), len(MOODS)
    taste = np.zeros((ARCHETYPES, topics + moods))
    for a in range(ARCHETYPES):
        taste[a, [a % topics, (a + 1) % topics]] = 1.0
        taste[a, [(a + 3) % topics, (a + 4) % topics]] = -1.0
        taste[a, topics + a % moods] = 1.0
        taste[a, topics + (a + 1) % moods] = -1.0
    return taste


def _deal(rng: np.random.Generator, rows: int, users: int) -> np.ndarray:
    """Event counts of users that sum to ``rows``, within about ±40 % of the mean."""
    weight = rng.uniform(0.6, 1.4, users)
    edges = np.round(np.concatenate([[0], np.cumsum(weight)]) * (rows / weight.sum())).astype(np.int64)
    return np.diff(edges)


def _times(rng: np.random.Generator, counts: np.ndarray) -> np.ndarray:
    """Unix seconds of each event: sessions of a few events; one event in five shares its time with the one before."""
    total = int(counts.sum())
    gap = np.where(rng.random(total) < 0.3, rng.exponential(40_000, total), rng.exponential(600, total)) + 1
    gap[rng.random(total) < 0.2] = 0
    start = np.repeat(rng.uniform(0, 30 * 86400, len(counts)), counts)
    elapsed = np.cumsum(gap)
    before = np.concatenate([[0.0], elapsed])[np.repeat(np.cumsum(counts) - counts, counts)]
    return (START + start + elapsed - before).astype(np.int64)


def _shuffled_rows(rng: np.random.Generator, ranked: np.ndarray, counts: np.ndarray) -> np.ndarray:
    keep = np.arange(ranked.shape[1]) < counts[:, None]
    order = np.argsort(np.where(keep, rng.random(ranked.shape), 2.0), axis=1, kind="stable")
    return np.take_along_axis(ranked, order, axis=1)[keep]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


def _ids(prefix: str, start: int, end: int) -> pa.Array:
    return pa.array([f"{prefix}{i:07d}" for i in range(start, end)], pa.string())
