"""Texts encoded anew while training: what is chosen, how ranks share it, every way to tune, and going on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rayrank.config import ConfigError
from rayrank.learning.collectives import Solo
from rayrank.learning.inputs import Hooks, Snapshot, TrainSpec
from rayrank.learning.negatives import NegativeSampler
from rayrank.learning.spec import LearningSpec, RefreshSpec
from rayrank.learning.texts import TextCache, encode_catalogue
from rayrank.learning.train import TrainResult
from rayrank.models.encoder import TextEncoder, build_encoder
from rayrank.models.linear import multiplies_bf16
from rayrank.models.noise import Noise
from rayrank.models.ranker import Ranker
from rayrank.models.tuning import AdaLora, Adapters, Frozen, Full, Lora, Top, TuneSpec, tune
from rayrank.objectives.spec import ObjectiveSpec
from tests.tiny_models import ITEMS, catalogue
from tests.tiny_runs import LEARNING, batches, curve, fresh, keep_in, on_ranks, run, with_texts

KINDS: list[TuneSpec] = [
    Top(), Full(), Lora(rank=2), Lora(rank=2, layers=1), AdaLora(rank=1, first_rank=2), Adapters(width=4),
]  # fmt: skip
ids = pytest.mark.parametrize("spec", KINDS, ids=lambda s: f"{s.kind}-{getattr(s, 'layers', '')}")


def learning(**changes: Any) -> LearningSpec:
    return LEARNING.model_copy(update={"encoder_learning_rate": 1e-2, **changes})


def encoder_of(model: Ranker) -> TextEncoder:
    assert isinstance(model.encoder, TextEncoder)  # type: ignore[union-attr]
    return model.encoder  # type: ignore[return-value, union-attr]


def texts_alone(encoder: TextEncoder, result: TrainResult) -> Tensor:
    table = result.catalogue
    assert table.token_ids is not None
    assert table.token_offsets is not None
    with torch.no_grad():
        return encoder.encode(table.token_ids, table.token_offsets, torch.arange(ITEMS + 1))


@ids
def test_every_way_to_tune_learns_what_it_says_and_leaves_a_plain_network(spec: TuneSpec) -> None:
    model = fresh("teacher", encoder=True, tuned=spec)
    encoder = encoder_of(model)
    trained = {n for n, p in encoder.network.named_parameters() if p.requires_grad}
    before = {n: p.detach().clone() for n, p in encoder.network.named_parameters()}
    plain = set(encoder_of(fresh("teacher", encoder=True, tuned=Frozen())).network.state_dict())
    result = run(model, batches(4), TrainSpec(learning(refresh=RefreshSpec(share=1.0))))
    after = dict(encoder.network.named_parameters())
    moved = {n for n in before.keys() & after.keys() if not torch.equal(before[n], after[n])}
    if spec.kind in ("top", "full"):
        assert moved == trained
        assert all("layer.1." in n for n in moved) or spec.kind == "full"
    if spec.kind in ("lora", "adalora"):
        assert set(after) == plain, "the additions are merged"
        weights = {n for n in after if n.endswith(("query.weight", "key.weight", "value.weight"))}
        first = {n.replace(".base_layer", ""): value for n, value in before.items()}
        changed = {n for n in weights if not torch.equal(after[n], first[n])}
        allowed = {n for n in weights if "layer.1." in n or not getattr(spec, "layers", None)}
        assert changed == allowed if spec.kind == "lora" else changed <= allowed, "AdaLoRA may take a rank to 0"
        assert changed
    if spec.kind == "adapters":
        assert {n.replace("output.dense.dense", "output.dense") for n in after} > plain
        assert moved == trained
        assert all(".down." in n or ".up." in n for n in moved)
    torch.testing.assert_close(result.catalogue.vectors_ND, texts_alone(encoder, result), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", [Lora(rank=2), AdaLora(rank=1, first_rank=2)], ids=lambda s: s.kind)
def test_additions_merge_into_the_weights(spec: TuneSpec) -> None:
    torch.manual_seed(0)
    encoder = encoder_of(fresh("teacher", encoder=True, tuned=spec))
    with torch.no_grad():
        for name, parameter in encoder.network.named_parameters():
            if "lora_" in name and "ranknum" not in name:
                parameter.normal_(std=0.3)
    table = with_texts(catalogue())
    given = (table.token_ids, table.token_offsets, torch.arange(ITEMS))
    with torch.no_grad():
        before = encoder.encode(*given)  # type: ignore[arg-type]
        encoder.merge()
        after = encoder.encode(*given)  # type: ignore[arg-type]
    plain = encoder_of(fresh("teacher", encoder=True, tuned=Frozen()))
    plain.network.load_state_dict(encoder.network.state_dict())
    assert float((after - before).abs().max()) <= 1e-5
    with torch.no_grad():
        assert float((plain.encode(*given) - before).abs().max()) <= 1e-5  # type: ignore[arg-type]


def test_adapters_come_back_from_a_config() -> None:
    encoder = encoder_of(fresh("teacher", encoder=True, tuned=Adapters(width=4, layers=1)))
    again = build_encoder(encoder.config())
    again.network.load_state_dict(encoder.network.state_dict())
    assert [n for n, _ in again.network.named_parameters() if ".up." in n] == [
        f"encoder.layer.1.output.dense.up.{name}" for name in ("weight", "bias")
    ]


@ids
def test_the_numbers_do_not_depend_on_the_number_of_ranks(spec: TuneSpec) -> None:
    given, how = batches(4), TrainSpec(learning(refresh=RefreshSpec(share=0.5)))
    alone = run(fresh("teacher", encoder=True, tuned=spec), given, how)
    first, second = on_ranks(2, lambda: fresh("teacher", encoder=True, tuned=spec), given, how)
    torch.testing.assert_close(curve(first), curve(alone), rtol=0, atol=1e-4)
    assert first.catalogue.vectors_ND is not None
    assert second.catalogue.vectors_ND is not None
    assert torch.equal(first.catalogue.vectors_ND, second.catalogue.vectors_ND)
    torch.testing.assert_close(first.catalogue.vectors_ND, alone.catalogue.vectors_ND, rtol=0, atol=1e-3)


@pytest.mark.parametrize("spec", [Top(), AdaLora(rank=1, first_rank=2)], ids=lambda s: s.kind)
def test_training_goes_on_as_if_it_had_not_stopped(spec: TuneSpec) -> None:
    how = TrainSpec(learning(refresh=RefreshSpec(share=0.5)))
    kept: list[Snapshot] = []
    hooks = Hooks(due=lambda: True, on_snapshot=keep_in(kept))
    whole = run(fresh("teacher", encoder=True, tuned=spec), batches(4), how, hooks=hooks)
    last = kept[-2]
    assert (last.meta["stage"], last.meta["epoch"], last.meta["position"]) == ("sequences", 1, 1)
    again = run(fresh("teacher", encoder=True, tuned=spec), batches(4), how, hooks=Hooks(resume=last))
    torch.testing.assert_close(curve(again), curve(whole), rtol=0, atol=1e-6)
    torch.testing.assert_close(again.catalogue.vectors_ND, whole.catalogue.vectors_ND, rtol=0, atol=1e-6)


def cache_of(spec: LearningSpec) -> TextCache:
    model = fresh("teacher", encoder=True)
    table = encode_catalogue(model, with_texts(catalogue()))
    return TextCache(encoder_of(model), table, spec, Solo())


def test_no_vector_that_is_used_is_older_than_the_bound() -> None:
    cache, lanes = cache_of(learning(refresh=RefreshSpec(share=0.05, max_age=7))), batches(4)
    used = torch.unique(torch.cat([b.events.item_BT.flatten() for b in lanes]))
    used = used[used > 0]
    oldest = []
    for step in range(60):
        cache.learn(cache.encode(cache.choose(lanes, None, Noise(0, step))), step)
        oldest.append(int((step - cache.encoded_at_N[used]).max()))
    assert 1 < max(oldest) < 7


@pytest.mark.parametrize("by", ["need", "uniform"])
def test_the_share_is_kept_and_need_prefers_what_is_old(by: str) -> None:
    cache, lanes = cache_of(learning(refresh=RefreshSpec(share=0.25, by=by, max_age=1000))), batches(4)
    used = torch.unique(torch.cat([b.events.item_BT.flatten() for b in lanes]))
    used = used[used > 0]
    old = used[: len(used) // 2]
    cache.encoded_at_N[:] = 99
    cache.encoded_at_N[old] = 70
    chosen = [cache.choose(lanes, None, Noise(seed, 100)) for seed in range(200)]
    share = sum(len(c) for c in chosen) / len(chosen) / len(used)
    of_old = sum(int(torch.isin(c, old).sum()) for c in chosen) / sum(len(c) for c in chosen)
    assert share == pytest.approx(0.25, abs=0.03)
    assert of_old > 0.9 if by == "need" else of_old == pytest.approx(len(old) / len(used), abs=0.05)


def test_exact_encodes_everything_that_a_step_uses() -> None:
    cache, lanes = cache_of(learning(exact=True)), batches(2)
    negatives = NegativeSampler.of(cache.catalogue, ObjectiveSpec(negatives=5)).draw(0)
    used = torch.unique(torch.cat([*(b.events.item_BT.flatten() for b in lanes), negatives.item_S]))
    assert torch.equal(cache.choose(lanes, negatives, Noise(0, 3)), used[used > 0])


def test_what_cannot_be_tuned_is_refused() -> None:
    other = build_encoder(
        {"model_type": "distilbert", "vocab_size": 30, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32,
         "max_position_embeddings": 16, "hidden_size": 16}
    )  # fmt: skip
    with pytest.raises(ConfigError, match="BERT-shaped"):
        tune(other, Top())
    tune(other, Lora(modules=("q_lin", "v_lin")))
    assert any("lora_" in name for name, _ in other.named_parameters())
    encoder = encoder_of(fresh("teacher", encoder=True))
    with pytest.raises(ConfigError, match="2 layers"):
        tune(encoder, Top(layers=3))
    with pytest.raises(ConfigError, match="'dense', 'key', 'query', 'value'"):
        tune(encoder, Lora(modules=("q_lin",)))


@ids
def test_bfloat16_changes_the_steps_where_the_device_has_it_and_little_else(spec: TuneSpec) -> None:
    def trained(precision: str) -> tuple[Ranker, TrainResult]:
        model = fresh("teacher", encoder=True, tuned=spec)
        how = learning(precision=precision, refresh=RefreshSpec(share=1.0))
        return model, run(model, batches(4), TrainSpec(how))

    (_, plain), (model, low) = trained("fp32"), trained("bf16")
    same = torch.equal(curve(plain), curve(low))
    assert same != multiplies_bf16(torch.device("cpu"))
    torch.testing.assert_close(curve(low), curve(plain), rtol=0.02, atol=0.02)
    assert not encoder_of(model).bf16
    torch.testing.assert_close(low.catalogue.vectors_ND, texts_alone(encoder_of(model), low), rtol=1e-6, atol=1e-6)
