"""A tiny dataset, teacher, student and release on disk, random weights: enough to serve, load and break."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rayrank.bundle import BundleParts, EncoderInfo, save_bundle
from rayrank.features.state import FeatureState, Scale, TableState
from rayrank.models.build import build_ranker
from rayrank.models.encoder import TextEncoder, build_encoder
from rayrank.models.spec import Inputs, RankerSpec, Sizes, StudentSpec, TeacherSpec
from rayrank.ranking.release import Release, save_release, set_alias
from rayrank.schema import (
    BinaryTask,
    CategoricalFeature,
    DatasetSchema,
    NumericFeature,
    RegressionTask,
    RetrievalTask,
)
from rayrank.sources import storage
from rayrank.sources.dataset import catalogue_of
from rayrank.sources.manifest import Counts, GroupInfo, Manifest, ShardInfo, data_fingerprint, write_manifest

ITEMS, USERS, WINDOW, TOKENS = 30, 6, 5, 12  # histories have up to 7 events: the window matters
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "green", "blue", "story", "war", "love", "space", "dog")
START = 1_000_000_000

SCHEMA = DatasetSchema(
    name="tiny",
    tasks=(
        BinaryTask(name="like", column="rating", at_least=4),
        RegressionTask(name="rating", column="rating", low=1, high=5),
        RetrievalTask(name="next", positive="like"),
    ),
    user_features=(CategoricalFeature(name="age", column="age"),),
    item_features=(
        CategoricalFeature(name="genres", column="genres", separator="|", max_values=2),
        NumericFeature(name="year", column="year"),
    ),
    context_features=(CategoricalFeature(name="device", column="device"),),
    text="{title}. {genres}. {plot}",
    title="title",
)
STATE = FeatureState(
    users=TableState(categories={"age": ("young", "old")}),
    items=TableState(categories={"genres": ("Drama", "Comedy", "War")}, scales={"year": Scale(mean=1990.0, std=10.0)}),
    context=TableState(categories={"device": ("phone", "tv")}),
)


@dataclass(frozen=True)
class TinyWorld:
    """Where everything lies."""

    folder: Path

    @property
    def dataset(self) -> Path:
        return self.folder / "dataset"

    @property
    def student(self) -> Path:
        return self.folder / "student"

    @property
    def teacher(self) -> Path:
        return self.folder / "teacher"

    @property
    def releases(self) -> Path:
        return self.folder / "releases"


def make_world(folder: Path) -> TinyWorld:
    """Write dataset, both bundles and a promoted release below ``folder``."""
    world = TinyWorld(folder)
    write_dataset(world.dataset)
    teacher = save_teacher(world.teacher)
    save_student(world.student, teacher_text(world.teacher))
    del teacher
    release = Release(
        release_id="tiny-1",
        student=str(world.student),
        teacher=str(world.teacher),
        fusion={"like": 1.0, "rating": 0.5},
        dataset=str(world.dataset),
    )
    save_release(world.releases, release)
    set_alias(world.releases, release.release_id)
    return world


def items_table() -> pa.Table:
    """The catalogue: ids i1…, titles, texts, encoded features, counts falling from i1 on."""
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(WORDS[4:], 6)) for _ in range(ITEMS)]
    counts = np.arange(ITEMS, 0, -1, dtype=np.int32)
    return pa.table(
        {
            "item_id": [f"i{n}" for n in range(1, ITEMS + 1)],
            "title": [f"Title {n} {texts[n - 1].split()[0]}" for n in range(1, ITEMS + 1)],
            "text": texts,
            "genres": pa.array([[1 + n % 3] for n in range(ITEMS)], pa.list_(pa.int32())),
            "year": pa.array(rng.standard_normal(ITEMS), pa.float32()),
            "train_count": counts,
            "train_sum_like": counts.astype(np.float32),
        }
    )


def users_table() -> pa.Table:
    """Users u1…, ages in turn."""
    return pa.table(
        {
            "user_id": [f"u{n}" for n in range(1, USERS + 1)],
            "age": pa.array([1 + n % 2 for n in range(USERS)], pa.int32()),
        }
    )


def tiny_encoder() -> TextEncoder:
    """A one-layer BERT over :data:`WORDS`, seeded."""
    torch.manual_seed(5)
    config = {
        "model_type": "bert",
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }
    return build_encoder(config)


def tokenizer_json() -> bytes:
    """A word-level tokenizer over :data:`WORDS`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer.to_str().encode()


def tokens_of(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and offsets with row 0 empty."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json().decode())
    rows = [[], *(tokenizer.encode(t).ids[:TOKENS] for t in texts)]
    ids = torch.tensor([i for row in rows for i in row], dtype=torch.int32)
    return ids, torch.tensor(np.cumsum([0, *map(len, rows)]))


def sizes(text_width: int) -> Sizes:
    return Sizes(
        users=USERS + 1,
        items=ITEMS + 1,
        user_categories={"age": 3},
        item_categories={"genres": 4},
        context_categories={"device": 3},
        text_width=text_width,
    )


def save_teacher(path: Path, spec: RankerSpec | None = None) -> object:
    """A random teacher (or a ranker of ``spec``) with the tiny encoder; every id counts as trained."""
    encoder = tiny_encoder()
    torch.manual_seed(7)
    spec = spec or TeacherSpec(width=16, attention_heads=2, id_width=4)
    model = build_ranker(spec, SCHEMA, sizes(16), encoder)
    _awake(model)
    ids, offsets = tokens_of(items_table().column("text").to_pylist())
    catalogue = catalogue_of(items_table(), SCHEMA)
    parts = _parts(
        catalogue=type(catalogue)(catalogue.features, catalogue.count_N, ids, offsets),
        encoder=EncoderInfo(name="tiny", config=encoder.config(), max_tokens=TOKENS),
        tokenizer={"tokenizer.json": tokenizer_json()},
    )
    return save_bundle(path, model, parts)


def save_student(path: Path, text_ND: torch.Tensor, inputs: Inputs | None = None) -> object:
    """A random student over the teacher's text table."""
    torch.manual_seed(11)
    spec = StudentSpec(width=8, hidden=16, id_width=4, recent=4, inputs=inputs or Inputs())
    model = build_ranker(spec, SCHEMA, sizes(text_ND.shape[1]))
    _awake(model)
    catalogue = catalogue_of(items_table(), SCHEMA)
    parts = _parts(catalogue=type(catalogue)(catalogue.features, catalogue.count_N, vectors_ND=text_ND))
    return save_bundle(path, model, parts)


def teacher_text(path: Path) -> torch.Tensor:
    """The text vectors of a saved teacher."""
    from safetensors.torch import load_file

    return load_file(path / "items.safetensors")["text"]


def write_dataset(path: Path) -> None:
    """Histories of all users but the last: user u has 2 + u events, one day apart, in two overlapping chunks."""
    path.joinpath("shards").mkdir(parents=True)
    pq.write_table(items_table(), path / "items.parquet")
    pq.write_table(users_table(), path / "users.parquet")
    rows, row = [], 0
    for user in range(1, USERS):
        count = 2 + user
        events = [
            {
                "item": (user * 5 + n) % ITEMS + 1,
                "request": n // 2,
                "time": START + 86_400 * (n // 2),
                "row": row + n,
                "label_like": float((user + n) % 2),
                "label_rating": 5.0 if (user + n) % 2 else 2.0,
                "context_device": 1 + n % 2,
                "history": True,
                "part": 3 if n >= count - 1 else 1,
            }
            for n in range(count)
        ]
        row += count
        chunks = [events[:-1], events] if user > 1 else [events]  # the window holds all earlier events
        for number, chunk in enumerate(chunks):
            owns = [e["part"] if number == 0 or e is events[-1] else 0 for e in chunk]
            lists = {name: [e[name] for e in chunk] for name in chunk[0]} | {"part": owns}
            rows.append(
                {"user": user, "key": user * 10 + number, **lists, "user_age": 1 + (user - 1) % 2}
                | {"valid_from": 2**31 - 1, "test_from": events[-1]["request"]}
            )
    table = pa.Table.from_pylist(rows, _shard_schema())
    pq.write_table(table, path / "shards" / "part-00000.parquet", row_group_size=3)
    _commit(path, table, row)


def _shard_schema() -> pa.Schema:
    lists = {"item": pa.int32(), "request": pa.int32(), "time": pa.int64(), "row": pa.int64(), "part": pa.int8()}
    lists |= {"label_like": pa.float32(), "label_rating": pa.float32(), "context_device": pa.int32()}
    lists |= {"history": pa.bool_()}
    scalars = {"user": pa.int32(), "key": pa.int64(), "user_age": pa.int32()}
    scalars |= {"valid_from": pa.int32(), "test_from": pa.int32()}
    return pa.schema([(n, t) for n, t in scalars.items()] + [(n, pa.list_(t)) for n, t in lists.items()])


def _commit(path: Path, table: pa.Table, events: int) -> None:
    groups = []
    for start in range(0, len(table), 3):
        part = table.slice(start, 3)
        owned = [p for row in part.column("part").to_pylist() for p in row]
        lengths = [len(r) for r in part.column("item").to_pylist()]
        groups.append(
            GroupInfo(
                sequences=len(part),
                events=sum(lengths),
                max_length=max(lengths),
                train=owned.count(1),
                valid=0,
                test=owned.count(3),
            )
        )
    file = "shards/part-00000.parquet"
    shard = ShardInfo(
        file=file, sha256=storage.sha256(str(path / file)), sequences=len(table), row_groups=tuple(groups)
    )
    tables = {name: storage.sha256(str(path / name)) for name in ("items.parquet", "users.parquet")}
    manifest = Manifest.model_validate(
        {
            "schema": SCHEMA,
            "fingerprint": SCHEMA.fingerprint(),
            "data_fingerprint": data_fingerprint(SCHEMA, (shard,), tables),
            "features": STATE,
            "counts": Counts(
                events=events,
                users=USERS,
                items=ITEMS,
                active_users=USERS - 1,
                train=sum(g.train for g in groups),
                valid=0,
                test=sum(g.test for g in groups),
            ),
            "shards": (shard,),
            "tables": tables,
            "window": WINDOW,
            "source": {"kind": "tiny"},
            "build": "tiny",
        }
    )
    write_manifest(str(path), manifest)


def _awake(model: torch.nn.Module) -> None:
    """Weights large enough that every input moves the scores; zero-initialised residuals included."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
        model.trained_items_N.fill_(1.0)  # type: ignore[operator, union-attr]
        model.trained_users_U.fill_(1.0)  # type: ignore[operator, union-attr]


def _parts(**changes: object) -> BundleParts:
    return BundleParts(
        schema=SCHEMA,
        features=STATE,
        items=items_table(),
        users=users_table(),
        data_fingerprint="d" * 64,
        window=WINDOW,
        metrics={"test.like.auc": 0.5, "test.like.gauc": float("nan")},  # no user with both classes
        **changes,  # type: ignore[arg-type]
    )


def request_json(**changes: object) -> str:
    """A rank request body."""
    return json.dumps({"candidates": ["i1", "i2", "i3"], **changes})
