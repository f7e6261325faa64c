"""Raw data in, a verified dataset of user-sequence shards out; readers of that dataset."""

from __future__ import annotations
