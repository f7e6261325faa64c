"""Attention over a user's events under request masks: causal layer, candidate attention, prefix pooling.

All of it is one masked pass over (B, Q, T), the same for the T positions of a training sequence and for the C
candidates of a request.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrank.batch import Events
from rayrank.models.layers import Perceptron, drop
from rayrank.models.noise import Noise, position_keys

_SOFT_CAP = 8.0
"""Bound of pooling logits: their exponentials are summed over prefixes without a maximum taken from later events."""


class CausalLayer(nn.Module):
    """Pre-norm transformer layer: a token attends to itself and to the tokens its mask shows."""

    def __init__(self, width: int, heads: int, dropout: float, site: str) -> None:
        super().__init__()
        self.heads, self.rate, self.site = heads, dropout, site
        self.norm_attention, self.norm_hidden = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.hidden = Perceptron((width, 2 * width, width), dropout, f"{site}.hidden")

    def forward(self, x_BTD: Tensor, mask_BTT: Tensor, noise: Noise | None, key_BT: Tensor) -> Tensor:
        """(B, T, D); ``mask_BTT`` is True where the row may see the column, itself included."""
        q, k, v = self.query_key_value(self.norm_attention(x_BTD)).chunk(3, dim=-1)
        seen = attend(split(q, self.heads), split(k, self.heads), split(v, self.heads), mask_BTT)
        x_BTD = x_BTD + drop(self.output(seen), self.rate, f"{self.site}.seen", noise, key_BT)
        return x_BTD + self.hidden(self.norm_hidden(x_BTD), noise, key_BT)


class CandidateAttention(nn.Module):
    """Each candidate reads the visible events through its own attention (cf. DIN, Zhou et al., KDD 2018).

    A learned empty event is always visible, so that users without history have an answer.
    """

    def __init__(self, query_width: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value = nn.Linear(query_width, width), nn.Linear(width, 2 * width)
        self.empty = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        if query_width == width:  # start as similarity: a candidate reads the events of items like it
            with torch.no_grad():
                self.query.weight.copy_(torch.eye(width))
                self.key_value.weight[:width].copy_(torch.eye(width))

    def forward(self, query_BQD: Tensor, tokens_BTD: Tensor, mask_BQT: Tensor) -> Tensor:
        """(B, Q, D) from candidates (B, Q, query_width) and events (B, T, D)."""
        empty = self.empty.expand(tokens_BTD.shape[0], 1, -1)
        k, v = self.key_value(torch.cat([empty, tokens_BTD], dim=1)).chunk(2, dim=-1)
        always = torch.ones_like(mask_BQT[:, :, :1])
        mask = torch.cat([always, mask_BQT], dim=2)
        q = self.query(query_BQD)
        return attend(split(q, self.heads), split(k, self.heads), split(v, self.heads), mask)


class PrefixPool(nn.Module):
    """Attention with a learned query per head: one state per number of visible events, whatever the candidate.

    Because the weights do not depend on the query, prefix sums give the state of every prefix at once.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.logit, self.value = nn.Linear(width, heads), nn.Linear(width, width)
        self.empty = nn.Parameter(torch.zeros(width))

    def forward(self, tokens_BTD: Tensor, shown_BT: Tensor, count_BQ: Tensor) -> Tensor:
        """(B, Q, D): the pooled first ``count_BQ`` events, those not shown left out."""
        batch, length, width = tokens_BTD.shape
        weight_BTH = (_SOFT_CAP * torch.tanh(self.logit(tokens_BTD) / _SOFT_CAP)).exp() * shown_BT.unsqueeze(-1)
        value_BTHd = self.value(tokens_BTD).view(batch, length, self.heads, width // self.heads)
        one = weight_BTH.new_ones(batch, 1, self.heads)
        empty = self.empty.view(1, 1, self.heads, -1).expand(batch, -1, -1, -1)
        sums = torch.cat([empty, value_BTHd * weight_BTH.unsqueeze(-1)], dim=1).cumsum(1)
        mean = (sums / torch.cat([one, weight_BTH], dim=1).cumsum(1).unsqueeze(-1)).reshape(batch, length + 1, width)
        return mean.gather(1, count_BQ.unsqueeze(-1).expand(-1, -1, width))


def read_causally(
    layers: nn.ModuleList, x_BTD: Tensor, events: Events, shown_BT: Tensor, noise: Noise | None
) -> Tensor:
    """(B, T, D) event tokens after the layers; each has seen the shown ones of earlier requests, and itself."""
    if not layers:
        return x_BTD
    length = x_BTD.shape[1]
    itself = torch.eye(length, dtype=torch.bool, device=x_BTD.device)
    earlier_BTT = events.request_BT.unsqueeze(1) < events.request_BT.unsqueeze(2)
    mask_BTT = (earlier_BTT & shown_BT.unsqueeze(1)) | itself
    for layer in layers:
        x_BTD = layer(x_BTD, mask_BTT, noise, position_keys(events.key_B, length))
    return x_BTD


def attend(q_BHQd: Tensor, k_BHTd: Tensor, v_BHTd: Tensor, mask_BQT: Tensor) -> Tensor:
    """(B, Q, H * d) softmax attention under a bool mask."""
    out = functional.scaled_dot_product_attention(q_BHQd, k_BHTd, v_BHTd, attn_mask=mask_BQT.unsqueeze(1))
    return out.transpose(1, 2).flatten(2)


def split(x_BTD: Tensor, heads: int) -> Tensor:
    """(B, H, T, d)."""
    return x_BTD.unflatten(-1, (heads, -1)).transpose(1, 2)
