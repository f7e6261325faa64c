"""What README.md and docs/serving.md ask a ranker, asked of a release on the quickstart's kind of data."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rayrank.config import load
from rayrank.messages import FeedbackRequest, HistoryEvent, ItemsRequest, RankRequest, RecommendRequest
from rayrank.on_ray.graph_spec import open_store
from rayrank.pipeline.distill import DistillConfig, distill
from rayrank.pipeline.prepare import PrepareConfig, prepare
from rayrank.pipeline.quickstart_plan import QuickstartConfig, plan
from rayrank.pipeline.train_teacher import TrainTeacherConfig, train_teacher
from rayrank.ranking.graph import RankingGraph, Records
from rayrank.ranking.release import Release, load_release, save_release, set_alias
from rayrank.ranking.state import StateSpec, open_state

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
PLACE = '"runs/quickstart/releases"'
REQUESTS = {"recommend": RecommendRequest, "rank": RankRequest}
SHORT = ("learning.epochs=1", "learning.rows.epochs=1", "tracking={kind: none}", "workers.count=0")


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release as the quickstart makes it, from fewer users and with a tiny encoder."""
    made = tmp_path_factory.mktemp("documented")
    source = "source={kind: synthetic, num_users: 100, num_items: 100, num_rows: 2000}"
    prepare(load(PrepareConfig, None, [source, f"path={made}/dataset", "engine=local"]), quiet)
    data = (f"dataset={made}/dataset", *SHORT)
    tiny = "encoder={kind: tiny, width: 16}"
    train_teacher(load(TrainTeacherConfig, None, [*data, f"output={made}/teacher", "cache=null", tiny]), quiet)
    alone = (f"teacher={made}/teacher", "objective.distillation=null")
    distill(load(DistillConfig, None, [*data, f"output={made}/student", *alone]), quiet)
    release = Release(
        release_id="documented",
        student=f"{made}/student",
        teacher=f"{made}/teacher",
        fusion={"like": 1.0},
        dataset=f"{made}/dataset",
    )
    save_release(made / "releases", release)
    set_alias(made / "releases", release.release_id)
    return made / "releases"


def documented_requests() -> list[tuple[str, dict[str, Any]]]:
    """(route, body) of every curl line of docs/serving.md."""
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    found = re.findall(r"curl -s localhost:8000/v1/(\w+) -H '[^']*' -d '([^']*)'", text)
    return [(route, json.loads(body)) for route, body in found]


def test_the_curl_lines_are_answered_without_a_warning(releases: Path) -> None:
    release = load_release(str(releases))
    store, state = open_store(release, str(releases / "histories.sqlite")), open_state(StateSpec(), str(releases))
    graph = RankingGraph.open(release, store=store, records=Records(state))
    *asked, (changing, change), (told, feedback) = documented_requests()
    assert [*(route for route, _ in asked), changing, told] == ["recommend", "rank", "items", "feedback"]
    for route, body in asked:
        answer = graph.respond(REQUESTS[route].model_validate(body))
        assert answer.warnings == [], route
        assert answer.answered_by == "teacher"
        assert len(answer.items) == body.get("k", 3)
        assert [item.cold for item in answer.items].count(True) == (route == "rank")
    assert graph.tell(FeedbackRequest.model_validate(feedback)).accepted == 1
    assert graph.add_items(ItemsRequest.model_validate(change)) == 1
    shown = graph.respond(RankRequest.model_validate({"candidates": ["new-1", "i0000005"]}))
    assert {item.item_id for item in shown.items} == {"new-1", "i0000005"}


def test_the_policy_of_the_page_fits_the_release(releases: Path, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(block:.*?)```", text, flags=re.DOTALL)
    (tmp_path / "policy.yaml").write_text(block)
    release = load_release(str(releases))
    graph = RankingGraph.open(release, policy=str(tmp_path / "policy.yaml"))
    items = graph.respond(RecommendRequest(history=[HistoryEvent(item_id="i0000034")], k=5)).items
    assert items[0].item_id == "i0000001"


@pytest.mark.parametrize("page", ["README.md", "docs/serving.md"])
def test_the_python_lines_run(page: str, releases: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert PLACE in block
    told = "\nimport json; print(json.dumps([(item.item_id, item.title, item.score) for item in ranked]))\n"
    script = block.replace(PLACE, repr(str(releases))).replace("ranker.rank(", "ranked = ranker.rank(") + told
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    ranked = json.loads(done.stdout.splitlines()[-1])
    assert len({score for _, _, score in ranked}) == 2, "ids that are in no catalogue share a score"
    assert all(title for item_id, title, _ in ranked if item_id)


def test_the_quickstart_is_on_this_kind_of_data() -> None:
    assert plan(QuickstartConfig()).prepare.source.kind == "synthetic"
