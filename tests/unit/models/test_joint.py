"""History and candidate as one text: against the library's own forward pass, one text at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import rayrank.models.encoder as encoders
from rayrank.batch import Queries, SequenceBatch
from rayrank.config import ConfigError
from rayrank.models.build import build_ranker
from rayrank.models.cross import Cross
from rayrank.models.encoder import TextEncoder, build_encoder
from rayrank.models.events import scaled_label
from rayrank.models.joint import Texts, first_tokens, latest
from rayrank.models.layers import clock_features
from rayrank.models.noise import Noise
from tests.tiny_models import BERT, ITEMS, SCHEMA, SIZES, TOKENS, batch, catalogue, model_of, spec_of

ROBERTA = {**BERT, "model_type": "roberta", "pad_token_id": 1, "max_position_embeddings": 24, "type_vocab_size": 1}
DISTIL = {
    "model_type": "distilbert", "vocab_size": 30, "dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 16,
    "max_position_embeddings": 16, "hidden_size": 8, "initializer_range": 0.3,
}  # fmt: skip


def cross(config: dict[str, Any] | None = None) -> Cross:
    model = model_of("cross")
    assert isinstance(model, Cross)
    if config is None:
        return model
    torch.manual_seed(1)
    other = build_ranker(model.spec, SCHEMA, SIZES, build_encoder(config)).eval()
    assert isinstance(other, Cross)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return other


def slow(model: Cross, given: SequenceBatch, queries: Queries, sequence: int, place: int) -> Tensor:
    """(K,) logits of one query: its text word by word, through the library's forward pass."""
    events, tokens = given.events, catalogue().tokens_NL
    assert tokens is not None
    before, joint = int(queries.visible_before_BQ[sequence, place]), model.joint
    seen = [t for t in range(events.shape[1]) if int(events.request_BT[sequence, t]) < before]
    candidate = [int(i) for i in tokens[queries.item_BQ[sequence, place]] if i >= 0]
    table = model.encoder.network.get_input_embeddings().weight  # type: ignore[operator]
    time = queries.time_BQ[sequence, place]
    gap = time - events.time_BT[sequence, seen[-1]] if seen else torch.tensor(-1)
    clock = torch.cat([clock_features(time, gap), torch.log1p(torch.tensor([float(len(seen))])) / 5.0])
    asked = joint.clock.weight @ clock + joint.clock.bias
    asked = asked + joint.context.tables["device"].weight[given.context["device"][sequence, place]]
    asked = asked + joint.user({n: v[sequence] for n, v in events.user_features.items()})
    words = [table[candidate[0]] + joint.spread * asked] if candidate else [joint.spread * asked]
    words += [table[i] + joint.spread * joint.candidate for i in candidate[1:]]
    spans = [range(1, len(words))]
    labels_BTW = joint.labels(dict(events.labels_BT))
    for t in reversed(seen[-model.spec.recent :]):
        own = [int(i) for i in tokens[events.item_BT[sequence, t]] if i >= 0][1:]
        spans.append(range(len(words), len(words) + len(own)))
        words += [table[i] + joint.spread * (labels_BTW[sequence, t] + joint.earlier) for i in own]
    ones = torch.ones(1, len(words), dtype=torch.int64)
    state = model.encoder.network(inputs_embeds=torch.stack(words)[None], attention_mask=ones).last_hidden_state[0]
    means = [state[list(span)].mean(0) if len(span) else torch.zeros(state.shape[1]) for span in spans]
    values = [[scaled_label(events.labels_BT[x.name][sequence, t], x)[0] for x in SCHEMA.event_tasks] for t in seen]
    label_RK = torch.tensor(values[-model.spec.recent :]).flip(0).view(-1, len(SCHEMA.event_tasks))
    heard = torch.zeros(label_RK.shape[1])
    if seen:
        like = torch.stack([functional.cosine_similarity(means[0], m, dim=0) for m in means[1:]])
        heard = (like * joint.sharpness.exp()).softmax(0) @ label_RK
    alike = label_RK.sum(0) / (len(label_RK) + 1.0)
    said: Tensor = model.heads(torch.cat([state[0], means[0], heard, alike])[None])[0]
    return said + model.hear * heard + model.middle_K


@pytest.mark.parametrize("config", [BERT, ROBERTA, DISTIL], ids=lambda c: c["model_type"])
def test_logits_are_those_of_one_text_at_a_time(config: dict[str, Any]) -> None:
    model, given = cross(config), batch()
    with torch.no_grad():
        items, queries = model.item_vectors(catalogue()), given.streaming()
        found = model.sequence_logits(model.user_state(given.events, items), queries, items, None)
        for sequence, place in ((0, 0), (0, 1), (0, 3), (1, 5), (2, 4), (2, 5)):
            wanted = slow(model, given, queries, sequence, place)
            torch.testing.assert_close(found[sequence, place], wanted, rtol=1e-4, atol=1e-5)


def test_blocks_that_are_computed_again_give_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = cross(), batch(sequences=6)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        items = model.item_vectors(catalogue())
        state = model.user_state(given.events, items, Noise(0, 1))
        model.sequence_logits(state, given.streaming(), items, Noise(0, 1)).square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    monkeypatch.setattr(encoders, "_BLOCK", 10**6)
    whole = gradients()
    monkeypatch.setattr(encoders, "_BLOCK", 40)
    pieces = gradients()
    assert pieces.keys() == whole.keys()
    assert any("joint.labels" in name for name in whole)
    assert any("encoder.layer.0" in name for name in whole)
    for name, gradient in whole.items():
        torch.testing.assert_close(pieces[name], gradient, rtol=1e-3, atol=1e-4, msg=name)


def test_a_block_holds_a_bounded_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given, sizes = cross(), batch(sequences=6), []
    monkeypatch.setattr(encoders, "_BLOCK", 40)
    read = TextEncoder.read

    def noted(self: TextEncoder, words_TW: Tensor, lengths: Tensor) -> Tensor:
        sizes.append(len(words_TW))
        return read(self, words_TW, lengths)

    monkeypatch.setattr(TextEncoder, "read", noted)
    items = model.item_vectors(catalogue())
    with torch.no_grad():
        model.sequence_logits(model.user_state(given.events, items), given.streaming(), items, None)
    assert max(sizes) <= 40
    assert len(sizes) > 5


def test_first_tokens_by_hand() -> None:
    ids, offsets = torch.tensor([2, 7, 3, 2, 8, 9, 10, 3], dtype=torch.int32), torch.tensor([0, 0, 3, 8])
    wanted = torch.tensor([[-1, -1, -1, -1], [2, 7, 3, -1], [2, 8, 9, 3]], dtype=torch.int32)
    assert torch.equal(first_tokens(ids, offsets, 4), wanted)
    assert torch.equal(first_tokens(ids[:0], torch.zeros(3, dtype=torch.int64), 2), wanted[:2, :2] * 0 - 1)


def test_the_latest_visible_events_come_first() -> None:
    model, given = cross(), batch(sequences=1)
    state = model.user_state(given.events, model.item_vectors(catalogue()))
    hidden = state.shown_BT.clone()
    hidden[0, 3] = False
    state = type(state)(**{**vars(state), "shown_BT": hidden})
    found = latest(state, torch.tensor([[0, 1, 4, 6]]), 3)
    assert found.tolist() == [[[-1, -1, -1], [0, -1, -1], [2, 1, 0], [5, 4, 2]]]


def test_lengths_count_every_word_once() -> None:
    items = torch.tensor([[2, 5, 3], [-1, -1, -1]])
    events = torch.tensor([[2.0, 6.0, -1.0, 0.5], [2.0, 6.0, 3.0, 0.5]])
    texts = Texts(torch.zeros(2, 1), items, torch.tensor([[1, 0], [0, -1]]), events)
    assert texts.lengths().tolist() == [1 + 2 + 2 + 1, 1 + 0 + 1]


def test_what_it_cannot_read_is_refused() -> None:
    with pytest.raises(ConfigError, match="reads item texts"):
        build_ranker(spec_of("cross"), SCHEMA, SIZES)
    with pytest.raises(ConfigError, match=r"model\.recent.*29 tokens, the encoder reads 16.*fix: 2"):
        build_ranker(spec_of("cross", recent=6), SCHEMA, SIZES, build_encoder(BERT))
    build_ranker(spec_of("cross", recent=2), SCHEMA, SIZES, build_encoder(BERT))


def test_tokens_are_exact_in_packed_rows() -> None:
    model, table = cross(), catalogue()
    found = model.tokens_of(model.item_vectors(table))
    assert found is not None
    assert found.shape == (ITEMS + 1, TOKENS)
    assert torch.equal(found, table.tokens_NL)  # type: ignore[arg-type]
