"""What a run keeps every minute and after every epoch, so that the same command goes on where it was interrupted.

Safetensors and JSON beside the bundle to come; frozen weights are not repeated. Knows files and snapshots only.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from safetensors.torch import load, load_file, save_file
from torch import nn

from rayrank.learning.code import code_digest
from rayrank.learning.inputs import Snapshot
from rayrank.on_ray.items import bundle_id
from rayrank.on_ray.label import read_label_key
from rayrank.on_ray.task import PLACES, FitTask
from rayrank.sources import storage
from rayrank.sources.encoders import FolderEncoder, HubEncoder, folder_identity, hub_commit
from rayrank.sources.manifest import read_manifest

META = "checkpoint.json"


class Checkpoints:
    """Checkpoints of one run; those of another (by ``key``) are ignored and overwritten."""

    def __init__(self, output: str, key: str) -> None:
        self.folder, self._key = f"{output.rstrip('/')}.checkpoint", key

    def latest(self) -> Snapshot | None:
        """The last whole snapshot of this run, without frozen weights."""
        place = storage.join(self.folder, META)
        if not storage.exists(place):
            return None
        meta = json.loads(storage.read_bytes(place))
        if meta.pop("key", None) != self._key:
            return None
        file = storage.join(self.folder, meta.pop("file"))
        # Mapped where it can be: workers share its pages, and large id tables are not there twice.
        return Snapshot(load(storage.read_bytes(file)) if "://" in file else load_file(file), meta)

    def write(self, snapshot: Snapshot, model: nn.Module) -> None:
        """Keep a snapshot: its tensors under a name of their own, then the note that points to them."""
        frozen = _frozen(model)
        kept = {
            name: value.detach().cpu().contiguous()
            for name, value in snapshot.tensors.items()
            if name.removeprefix("model/").removeprefix("best/") not in frozen
        }
        file = f"{snapshot.meta['stage']}-{int(snapshot.meta['step']):07d}.safetensors"
        place = storage.join(self.folder, META)
        old = json.loads(storage.read_bytes(place))["file"] if storage.exists(place) else None
        with storage.placed(storage.join(self.folder, file)) as name:
            save_file(kept, name)  # straight from the tensors' own memory
        storage.write_json(place, {**snapshot.meta, "key": self._key, "file": file})
        if old and old != file:
            storage.remove(storage.join(self.folder, old))

    def remove(self) -> None:
        """The run is over."""
        storage.remove(self.folder)


def with_frozen(snapshot: Snapshot, model: nn.Module) -> Snapshot:
    """The snapshot with the frozen weights that it leaves out, taken from the freshly built model."""
    frozen = {name: value.detach().cpu() for name, value in _frozen(model).items()}
    copies = {f"{where}/{name}": value for where in ("model", "best") for name, value in frozen.items()}
    return Snapshot({**snapshot.tensors, **copies}, snapshot.meta)


def run_key(task: FitTask) -> str:
    """Equal for runs that give the same result: the task, the code, what is in its dataset, encoder, teacher, labels.

    Raises:
        ConfigError: one of them does not exist.
    """
    asked = json.dumps({k: v for k, v in task.model_dump(mode="json").items() if k not in PLACES}, sort_keys=True)
    parts = [asked, code_digest(), read_manifest(task.dataset).data_fingerprint]
    if isinstance(task.encoder, FolderEncoder):
        parts.append(folder_identity(Path(task.encoder.path)))
    if isinstance(task.encoder, HubEncoder):
        parts.append(hub_commit(task.encoder) or "")
    if task.teacher:
        parts.append(bundle_id(task.teacher))
    parts += [bundle_id(member.bundle) for member in task.asked]
    if task.cold_encoder:
        parts.append(bundle_id(task.cold_encoder))
    if task.labels:
        parts.append(read_label_key(task.labels).model_dump_json())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _frozen(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if not p.requires_grad}
