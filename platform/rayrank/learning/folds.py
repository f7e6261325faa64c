"""Cross-validation over users: those of one fold are not trained on, and they alone are evaluated.

A user belongs to a fold by a hash of the user's row, whatever the shard, chunk or order. Item statistics and a
teacher's labels come from all users' training events, as they do without folds; what is held out are targets.
"""

from __future__ import annotations

from torch import Tensor

from rayrank.batch import SequenceBatch
from rayrank.learning.plan import take
from rayrank.learning.spec import FoldSpec
from rayrank.models.noise import Noise


def held_out(user_B: Tensor, fold: FoldSpec) -> Tensor:
    """bool (B,): users of the fold."""
    place_B = Noise(fold.seed, 0).uniform("fold", user_B.long()).double() * fold.count
    return place_B.long() == fold.number


def trained(batch: SequenceBatch, fold: FoldSpec | None) -> SequenceBatch:
    """The sequences that are trained on; all of them without a fold. May be none."""
    return batch if fold is None else take(batch, (~held_out(batch.events.user_B, fold)).nonzero()[:, 0])


def evaluated(batch: SequenceBatch, fold: FoldSpec | None) -> SequenceBatch:
    """The sequences that are evaluated; all of them without a fold. May be none."""
    return batch if fold is None else take(batch, held_out(batch.events.user_B, fold).nonzero()[:, 0])
