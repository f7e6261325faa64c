"""The models as LitServe wants them; a module of its own, because LitServe pickles the class for its worker."""

# LitServe reads annotations at run time: they must not be postponed.
from typing import Any

import litserve as ls

from benchmarks.serving.peers import open_graph
from benchmarks.serving.server import READY
from rayrank.config import parse
from rayrank.messages import RankRequest, RecommendRequest
from rayrank.on_ray.graph_spec import GraphSpec


class Ranking(ls.LitAPI):
    """Decode, predict, encode, in LitServe's own steps."""

    def __init__(self, raw: dict[str, Any]) -> None:
        super().__init__(api_path="/v1/rank")
        self.raw = raw

    def setup(self, device: str) -> None:  # noqa: ARG002
        """In the worker."""
        spec = parse(GraphSpec, self.raw, "peer")
        self.graph, self.now = open_graph(spec), spec.now
        print(READY, flush=True)

    def decode_request(self, request: dict[str, Any]) -> RankRequest | RecommendRequest:
        """Validated as everywhere."""
        return (RankRequest if "candidates" in request else RecommendRequest).model_validate(request)

    def predict(self, asked: RankRequest | RecommendRequest) -> dict[str, Any]:
        """The same functions."""
        return self.graph.respond(asked, self.now).model_dump(mode="json")

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """JSON is made by the HTTP process."""
        return output
