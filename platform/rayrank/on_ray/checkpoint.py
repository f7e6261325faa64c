"""What a run keeps after every epoch, so that the same command goes on where it was interrupted.

Safetensors and JSON beside the bundle to come; frozen weights are not repeated. Knows files and snapshots only.
"""

from __future__ import annotations

import json

from safetensors.torch import load, save
from torch import nn

from rayrank.learning.train import Snapshot
from rayrank.sources import storage

META = "checkpoint.json"


class Checkpoints:
    """Checkpoints of one run; those of another config (``key``) are ignored and overwritten."""

    def __init__(self, output: str, key: str, model: nn.Module) -> None:
        self.folder, self._key, self._model = f"{output.rstrip('/')}.checkpoint", key, model

    def latest(self) -> Snapshot | None:
        """The last whole snapshot of this config."""
        place = storage.join(self.folder, META)
        if not storage.exists(place):
            return None
        meta = json.loads(storage.read_bytes(place))
        if meta.pop("key", None) != self._key:
            return None
        tensors = load(storage.read_bytes(storage.join(self.folder, meta.pop("file"))))
        for name, value in self._frozen().items():
            tensors[f"model/{name}"] = tensors[f"best/{name}"] = value.detach().cpu()
        return Snapshot(tensors, meta)

    def write(self, snapshot: Snapshot) -> None:
        """Keep a snapshot: its tensors under a name of their own, then the note that points to them."""
        frozen = self._frozen()
        kept = {
            name: value.contiguous()
            for name, value in snapshot.tensors.items()
            if name.removeprefix("model/").removeprefix("best/") not in frozen
        }
        file = f"epoch-{int(snapshot.meta['epoch']):04d}.safetensors"
        place = storage.join(self.folder, META)
        old = json.loads(storage.read_bytes(place))["file"] if storage.exists(place) else None
        storage.write_bytes(storage.join(self.folder, file), save(kept))
        storage.write_json(place, {**snapshot.meta, "key": self._key, "file": file})
        if old and old != file:
            storage.remove(storage.join(self.folder, old))

    def remove(self) -> None:
        """The run is over."""
        storage.remove(self.folder)

    def _frozen(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self._model.named_parameters() if not p.requires_grad}
