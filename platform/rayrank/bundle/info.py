"""What ``bundle.json`` says: identity, specs, lineage and the hash of every file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from rayrank.config import Config, ConfigError
from rayrank.models.spec import RankerSpec, Sizes
from rayrank.schema import DatasetSchema

FORMAT = 2
MANIFEST = "bundle.json"
WEIGHTS = "weights.safetensors"
FEATURES = "features.json"
ITEMS = "items.parquet"
ITEM_TABLE = "items.safetensors"
USERS = "users.parquet"
PAST = "past.safetensors"
GOLDEN = "golden.safetensors"
CARD = "MODEL_CARD.md"
ENCODER = "encoder"
GRAPH = "model.onnx"
GRAPHS = "graphs"

Role = Literal["teacher", "student"]
Backend = Literal["torch", "onnx"]


class Parent(Config):
    """A bundle that this one was made from."""

    role: Role = Field(description="what it was used as")
    bundle_id: str = Field(description="its id")


class EncoderInfo(Config):
    """The text encoder of a teacher; its weights are part of the bundle's own."""

    name: str = Field(description="where it came from, for people")
    config: dict[str, Any] = Field(description="Hugging Face configuration that rebuilds the network")
    max_tokens: int = Field(ge=1, description="longest text in tokens; the rest is cut")
    sha256: str | None = Field(None, description="hash of the pretrained weights it started from")
    backend: Backend = Field(
        "torch", description="what computes it; onnx: the graph encoder/model.onnx, which holds its weights too"
    )


class Compression(Config):
    """How a bundle was made smaller from its last parent, and what that cost and gained."""

    method: dict[str, Any] = Field(description="resolved method")
    machine: str = Field(description="when and on what it was measured")
    part: str = Field(description="targets that both were judged on")
    differences: dict[str, float] = Field(description="how far the scores moved, by name")
    limits: dict[str, float | None] = Field(description="limits that were kept")
    speeds: dict[str, tuple[float, float]] = Field(description="what -> (original, this bundle)")
    code: str = Field("", description="digest of the code that made and judged it")
    requests: int | None = Field(None, description="requests that were timed and ordered by both")
    candidates: int | None = Field(None, description="candidates of such a request")


class BundleInfo(Config):
    """The manifest; see the package text."""

    format: int = Field(FORMAT, description="format version of the directory")
    role: Role = Field(description="teacher or student")
    spec: RankerSpec = Field(description="what the model is made of")
    sizes: Sizes = Field(description="vocabulary sizes")
    data_schema: DatasetSchema = Field(description="schema of the dataset it was trained on")
    schema_fingerprint: str = Field(description="sha256 of that schema")
    data_fingerprint: str = Field(description="sha256 over the shards it was trained on")
    window: int = Field(ge=1, description="events of history that the model was trained to see")
    metrics: dict[str, float] = Field(default_factory=dict, description="what evaluation found, by name")
    parents: tuple[Parent, ...] = Field((), description="teacher → student and earlier lineage")
    encoder: EncoderInfo | None = Field(None, description="text encoder, if the model has one")
    config: dict[str, Any] = Field(default_factory=dict, description="resolved config of the run")
    compression: Compression | None = Field(None, description="how it was made smaller, if it was")
    backend: Backend = Field(
        "torch", description="what answers requests; onnx: the graphs in graphs/ (whatever else is asked: torch)"
    )
    dtype: Literal["float32", "bfloat16", "int8"] = Field(
        "float32", description="type of the text encoder's weights; everything else is float32"
    )
    parameters: int = Field(0, description="number of weights")
    created: str = Field("", description="ISO 8601, UTC")
    git_revision: str | None = Field(None, description="revision of the code that made it, if known")
    libraries: dict[str, str] = Field(default_factory=dict, description="versions it was made with")
    files: dict[str, str] = Field(default_factory=dict, description="file -> sha256")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of all tasks."""
        return tuple(t.name for t in self.data_schema.tasks)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file, streamed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def local_folder(path: str | Path) -> Path:
    """``path`` as a local one.

    Raises:
        ConfigError: a URL; weights are mapped into memory, which needs a local file.
    """
    if "://" in str(path):
        raise ConfigError(str(path), None, "bundles lie on a local or mounted disk", "copy it, or mount the bucket")
    return Path(path)
