"""The graphs of a ranker say what torch says, for every target of a sequence asked as a request of its own."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from rayrank.compression.by_request import ByRequest
from rayrank.compression.ranker_graphs import request_graphs
from rayrank.config import ConfigError
from rayrank.models.onnx_ranker import READ, RequestGraphs
from rayrank.models.portable import prefix_max, solved, solved_by_elimination, spread, spread_by_inverse
from tests.tiny_models import KINDS, batch, catalogue, model_of

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("teacher", "cross")])
def test_graphs_say_what_torch_says(kind: str) -> None:
    """Empty histories, hidden events and unknown users are among the targets."""
    model, given = model_of(kind), batch()
    model.trained_users_U[2] = 0.0
    model.static_share_K.copy_(torch.tensor([0.25, 0.5]))
    shown_BT = torch.rand(given.events.item_BT.shape, generator=torch.Generator().manual_seed(0)) < 0.8
    events, queries = replace(given.events, history_BT=shown_BT), given.streaming()
    with torch.inference_mode():
        items = model.item_vectors(catalogue())
        graphs = RequestGraphs(request_graphs(model, items.shape[1]))
        slow = ByRequest(model, graphs)
        found = slow.score(slow.user_state(events, items), queries, items)  # type: ignore[arg-type]
        for task, logits in model.score(model.user_state(events, items), queries, items).items():
            torch.testing.assert_close(found[task], logits, rtol=1e-5, atol=1e-5)


def test_plain_arithmetic_is_what_the_libraries_do() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 40, 6, generator=generator)
    matrix, right = x.transpose(1, 2) @ x + torch.eye(6), torch.randn(2, 6, 3, generator=generator)
    asked = torch.randn(2, 6, generator=generator)
    found, inverse = solved_by_elimination(matrix, right)
    np.testing.assert_allclose(found.numpy(), np.linalg.solve(matrix.numpy(), right.numpy()), rtol=1e-4, atol=1e-6)
    expected, kept = solved(matrix, right)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(spread_by_inverse(inverse, asked), spread(kept, asked), rtol=1e-5, atol=1e-6)
    assert prefix_max(torch.tensor([[3, 1, 4, 1, 5]])).tolist() == [[3, 3, 4, 4, 5]]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"ranker runs on ONNX Runtime.*onnxruntime must be installed"):
        RequestGraphs({READ: b""})
