"""Training as tutorials show it: every row tokenised, padded to 128 and encoded, one candidate at a time.

Plain Transformers and PyTorch, as a competent user would write them: a pretrained encoder with mean pooling, a user
embedding, a small network on top, AdamW.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, PreTrainedTokenizerFast

from benchmarks.train.encoder import padded_vectors
from rayrank.sources.encoders import package_folder

PADDED, BATCH = 128, 16


@dataclass(frozen=True)
class Events:
    """Rows of the log: users, texts of the candidates, labels."""

    user: np.ndarray
    item: np.ndarray
    like: np.ndarray
    rating: np.ndarray
    row: np.ndarray


class NaiveRanker(nn.Module):
    """Encoder, user embedding, two layers, a logit and a rating."""

    def __init__(self, users: int) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(str(package_folder()), add_pooling_layer=False)
        width = self.encoder.config.hidden_size
        self.user = nn.Embedding(users, 64)
        self.head = nn.Sequential(nn.Linear(width + 64, 128), nn.ReLU(), nn.Linear(128, 2))

    def forward(self, user: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, 2) logit of like, rating."""
        return self.judged(user, padded_vectors(self.encoder, ids, mask))

    def judged(self, user: Tensor, vectors: Tensor) -> Tensor:
        """(B, 2) from vectors that are there."""
        out: Tensor = self.head(torch.cat([vectors, self.user(user)], dim=-1))
        return out


class NaiveLoop:
    """Steps over rows in random order."""

    def __init__(self, events: Events, texts: list[str], users: int, encoder_rate: float = 2e-5) -> None:
        torch.manual_seed(0)
        self.events, self.texts, self.model = events, texts, NaiveRanker(users)
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(package_folder() / "tokenizer.json"))
        self.tokenizer.pad_token = "[PAD]"
        slow = [p for n, p in self.model.named_parameters() if n.startswith("encoder.")]
        fast = [p for n, p in self.model.named_parameters() if not n.startswith("encoder.")]
        groups = [{"params": slow, "lr": encoder_rate}, {"params": fast, "lr": 1e-3}]
        self.optimiser = torch.optim.AdamW(groups, fused=True)
        self.order = np.random.default_rng(0).permutation(len(events.user))
        self.done, self.seconds = 0, 0.0

    def run(self, steps: int) -> None:
        """So many steps more; their wall time is added up."""
        began = time.perf_counter()
        for _ in range(steps):
            rows = self.order[np.arange(self.done, self.done + BATCH) % len(self.order)]
            self._step(rows)
            self.done += BATCH
        self.seconds += time.perf_counter() - began

    def _step(self, rows: np.ndarray) -> None:
        said = self.tokenizer(
            [self.texts[i] for i in self.events.item[rows]],
            padding="max_length", truncation=True, max_length=PADDED, return_tensors="pt",
        )  # fmt: skip
        out = self.model(torch.as_tensor(self.events.user[rows]), said["input_ids"], said["attention_mask"])
        like, rating = (torch.as_tensor(x[rows], dtype=torch.float32) for x in (self.events.like, self.events.rating))
        loss = functional.binary_cross_entropy_with_logits(out[:, 0], like) + functional.mse_loss(out[:, 1], rating)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()

    def score(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        """Logits of like; every text is encoded once, which gives the same numbers."""
        self.model.eval()
        distinct, place = np.unique(item, return_inverse=True)
        with torch.no_grad():
            vectors = []
            for start in range(0, len(distinct), 32):
                few = [self.texts[i] for i in distinct[start : start + 32]]
                said = self.tokenizer(few, padding=True, truncation=True, max_length=PADDED, return_tensors="pt")
                vectors.append(padded_vectors(self.model.encoder, said["input_ids"], said["attention_mask"]))
            out = self.model.judged(torch.as_tensor(user), torch.cat(vectors)[torch.as_tensor(place)])
        self.model.train()
        return out[:, 0].numpy()
