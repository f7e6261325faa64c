"""Dropout belongs to (seed, step, key, position, site), not to a batch."""

from __future__ import annotations

import torch

from rayrank.models.noise import Noise, position_keys


def test_masks_do_not_depend_on_what_else_is_in_the_batch() -> None:
    noise, keys = Noise(1, 2), position_keys(torch.tensor([5, 9, 1]), 4)
    x = torch.ones(3, 4, 16)
    whole = noise.drop(x, 0.5, "site", keys)
    torch.testing.assert_close(noise.drop(x[1:2], 0.5, "site", keys[1:2]), whole[1:2], rtol=0, atol=0)
    torch.testing.assert_close(noise.drop(x[:, 2:], 0.5, "site", keys[:, 2:]), whole[:, 2:], rtol=0, atol=0)


def test_masks_differ_by_seed_step_site_key_and_position() -> None:
    keys, x = position_keys(torch.tensor([5]), 2), torch.ones(1, 2, 64)
    base = Noise(1, 2).drop(x, 0.5, "site", keys)
    others = [
        Noise(2, 2).drop(x, 0.5, "site", keys),
        Noise(1, 3).drop(x, 0.5, "site", keys),
        Noise(1, 2).drop(x, 0.5, "other", keys),
        Noise(1, 2).drop(x, 0.5, "site", position_keys(torch.tensor([6]), 2)),
    ]
    assert all(not torch.equal(base, other) for other in others)
    assert not torch.equal(base[0, 0], base[0, 1])


def test_share_and_scale_are_those_asked_for() -> None:
    keys = torch.arange(4000).view(40, 100)
    dropped = Noise(3, 0).drop(torch.ones(40, 100, 32), 0.2, "site", keys)
    kept = (dropped > 0).float()
    assert abs(float(kept.mean()) - 0.8) < 0.005
    assert abs(float(dropped.mean()) - 1.0) < 0.01
    torch.testing.assert_close(dropped[dropped > 0].max(), torch.tensor(1.25))
    columns = kept.mean((0, 1))
    assert float((columns - 0.8).abs().max()) < 0.03  # no column is favoured
    assert Noise(3, 0).drop(dropped, 0.0, "site", keys) is dropped


def test_uniform_numbers_are_uniform() -> None:
    values = Noise(7, 1).uniform("site", torch.arange(20_000))
    assert float(values.min()) >= 0.0
    assert float(values.max()) < 1.0
    counts = torch.histc(values, 10, 0.0, 1.0)
    assert float((counts / 2000 - 1).abs().max()) < 0.1
