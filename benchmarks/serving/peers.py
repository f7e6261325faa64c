"""The same models behind other servers: FastAPI on uvicorn, and LitServe. One process computes in each.

Both get the fast ways of their kind: a plain function that FastAPI runs in its thread pool, the answer written by
pydantic straight to bytes, one torch thread, no access log.

    python -m benchmarks.serving.peers fastapi|litserve '{"port": …, "spec": …}'
"""

# FastAPI and LitServe read annotations at run time: they must not be postponed here.
import json
import sys

import torch

from benchmarks.serving.server import READY
from rayrank.config import parse
from rayrank.messages import RankRequest, RankResponse, RecommendRequest
from rayrank.on_ray.graph_spec import GraphSpec, open_user_data
from rayrank.ranking.graph import RankingGraph, Records
from rayrank.ranking.release import load_release


def open_graph(spec: GraphSpec) -> RankingGraph:
    """The stages that the graph serves, in this process."""
    torch.set_num_threads(1)
    release = load_release(spec.releases)
    store, state = open_user_data(spec, release)
    graph = RankingGraph.open(release, spec.flow, store, spec.policy, Records(state))
    if "retrieve" not in spec.flow.without:
        graph.open_index()
    return graph


def fastapi(port: int, spec: GraphSpec) -> None:
    """FastAPI behind one uvicorn worker."""
    import uvicorn
    from fastapi import FastAPI, Response

    graph, api = open_graph(spec), FastAPI(on_startup=[lambda: print(READY, flush=True)])

    @api.post("/v1/rank", response_model=RankResponse)
    def rank(body: RankRequest) -> Response:
        return Response(graph.respond(body, spec.now).model_dump_json(), media_type="application/json")

    @api.post("/v1/recommend", response_model=RankResponse)
    def recommend(body: RecommendRequest) -> Response:
        return Response(graph.respond(body, spec.now).model_dump_json(), media_type="application/json")

    uvicorn.run(api, host="127.0.0.1", port=port, log_level="warning", access_log=False)


def litserve(port: int, spec: GraphSpec) -> None:
    """LitServe: its HTTP process and one worker."""
    import litserve as ls

    from benchmarks.serving.litserve_api import Ranking

    api = Ranking(spec.model_dump(mode="json"))
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(host="127.0.0.1", port=port, num_api_servers=1, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    asked = json.loads(sys.argv[2])
    {"fastapi": fastapi, "litserve": litserve}[sys.argv[1]](asked["port"], parse(GraphSpec, asked["spec"], "peer"))
