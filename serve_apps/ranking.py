"""The ranking graph as a Serve application: `serve run serve_apps.ranking:app releases=…`, or with ranking.yaml."""

# Serve reads the type of `arguments` at run time: annotations must not be postponed here.
from pathlib import Path

from ray.serve import Application

from rayrank.on_ray.graph_spec import GraphSpec
from rayrank.on_ray.serve import build_graph

PAGE = Path(__file__).with_name("playground.html")


def app(arguments: GraphSpec) -> Application:
    """Build the graph from the `args` of a Serve config; paths must be absolute."""
    return build_graph(arguments, PAGE.read_text(encoding="utf-8"))
