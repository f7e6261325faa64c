"""The job configs that init writes: valid, inside one folder, and enough to go from clicks to scores."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rayrank.config import load, path_fields
from rayrank.entry import run
from rayrank.pipeline.init_jobs import job_files
from rayrank.pipeline.verbs import VERBS, bind
from rayrank.schema import BinaryTask, DatasetSchema, RegressionTask
from tests.published_layouts import kuairand, mind

JOBS: tuple[str, ...] = ("train_teacher", "label", "tune", "distill", "evaluate", "compare", "compress", "promote")
JOBS += ("score", "funnel", "serve", "export_served")
SHORT = ("learning.epochs=1", "learning.rows.epochs=1", "tracking={kind: none}")
SMALL: dict[str, tuple[str, ...]] = {
    "prepare": ("engine=local",),
    "train_teacher": (*SHORT, "workers.count=0"),
    "label": ("actors=0",),
    "distill": SHORT,
    "evaluate": ("resamples=50", "cost_requests=5", "tracking={kind: none}"),
    "compare": ("resamples=100", "cost_requests=5", "tracking={kind: none}"),
    "funnel": ("requests=10", "timed=5", "repeats=1", "tracking={kind: none}"),
    "promote": (
        "resamples=100",
        "tracking={kind: none}",
        "gates.skip=[gain_auc, gain_gauc, lift, calibration, latency]",
    ),
    "score": ("actors=0",),
}
"""Less of everything, without Ray; the gates are skipped because so little data teaches nothing."""


def clicks(folder: Path) -> Path:
    chance = random.Random(0)
    rows = [f"u{u},i{chance.randint(1, 40)},{1700000000 + 100 * i + u}" for u in range(24) for i in range(16)]
    (folder / "clicks.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    items = [f"i{i},A thing with number {i} on it,{'abc'[i % 3]}" for i in range(1, 41)]
    (folder / "items.csv").write_text("item_id,title,category\n" + "\n".join(items) + "\n")
    return folder / "clicks.csv"


def ask(job: str, *words: str) -> None:
    assert run(bind(job), [*words, "--debug"], job) == 0


def check_written(made: Path) -> None:
    """Every config is valid and keeps to its folder."""
    for job in JOBS:
        config = load(bind(job).config, made / f"{job}.yaml")
        places = {name: place.removeprefix("sqlite:///") for name, place in path_fields(config).items()}
        outside = {name for name, place in places.items() if not place.startswith(str(made))}
        assert outside <= {"cluster.address", "items", "users", "playground"}, job  # what was given to init, and a page
        ask(job, str(made / f"{job}.yaml"), "--show")


@pytest.mark.parametrize("layout", [kuairand, mind], ids=["kuairand", "mind"])
def test_a_published_layout_gets_configs_too(tmp_path: Path, layout) -> None:
    ask("init", f"interactions={layout(tmp_path / 'raw')}", f"out={tmp_path}/made")
    check_written(tmp_path / "made")
    assert "click: 1.0" in (tmp_path / "made" / "promote.yaml").read_text()


def test_names_and_weights_come_from_folder_and_tasks(tmp_path: Path) -> None:
    tasks = (BinaryTask(name="buy", column="b"), RegressionTask(name="stars", column="s", low=1, high=5))
    schema = DatasetSchema(name="shop", user_id="u", item_id="i", timestamp="t", tasks=tasks)
    entities = {"items": "raw/items.csv", "items_key": "sku"}
    texts = {path.stem: text for path, text in job_files(str(tmp_path / "my shop"), "d", schema, entities).items()}
    assert "fusion: {buy: 1.0, stars: 0.5}" in texts["promote"]
    assert "model_name: my shop" in texts["promote"]
    assert "experiment: my shop" in texts["train_teacher"]
    assert "inputs: {text: false}" in texts["train_teacher"]
    assert "inputs: {text: false}" in texts["distill"]
    assert "items: raw/items.csv\nitems_key: sku\n" in texts["export_served"]
    assert "my shop/served}" in texts["serve"]


def test_every_job_of_the_examples_is_written(tmp_path: Path) -> None:
    ask("init", f"interactions={clicks(tmp_path)}", f"out={tmp_path}/made")
    written = {path.stem for path in (tmp_path / "made").glob("*.yaml")} - {"dataset"}
    examples = {path.stem for path in Path("jobs/configs/synthetic").glob("*.yaml")} & set(VERBS)
    assert written == examples | {"export_served"}


def test_the_playground_is_on_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = f"interactions={clicks(tmp_path)}"
    ask("init", source, f"out={tmp_path}/here")
    assert load(bind("serve").config, tmp_path / "here" / "serve.yaml").playground == "serve_apps/playground.html"
    monkeypatch.chdir(tmp_path)
    ask("init", source, f"out={tmp_path}/elsewhere")
    assert load(bind("serve").config, tmp_path / "elsewhere" / "serve.yaml").playground is None
    assert "# playground: " in (tmp_path / "elsewhere" / "serve.yaml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("text", [True, False], ids=["items with titles", "clicks alone"])
def test_from_clicks_to_scores_with_nothing_but_what_init_wrote(tmp_path: Path, text: bool) -> None:
    made = tmp_path / "mydata"
    items = [f"items={tmp_path}/items.csv"] if text else []
    ask("init", f"interactions={clicks(tmp_path)}", *items, f"out={made}")
    check_written(made)
    encoder = ["encoder={kind: tiny, width: 16}"] if text else []
    path = (
        "validate",
        "prepare",
        "train_teacher",
        "label",
        "distill",
        "evaluate",
        "compare",
        "promote",
        "score",
        "funnel",
    )
    for job in path:
        more = encoder if job == "train_teacher" else []
        file = "prepare" if job == "validate" else job
        ask(job, str(made / f"{file}.yaml"), *SMALL.get(job, ()), *more)
    assert {"compare/compare.md", "funnel/funnel.md"} <= {f"{p.parent.name}/{p.name}" for p in made.glob("*/*.md")}
    assert "score" in pq.read_table(made / "scores").column_names
    assert pq.read_table(made / "scores").num_rows > 0


def test_an_edited_config_is_kept_unless_told_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"interactions={clicks(tmp_path)}", f"out={tmp_path}/made"]
    ask("init", *words)
    edited = tmp_path / "made" / "promote.yaml"
    edited.write_text(edited.read_text() + "part: valid\n")
    assert run(bind("init"), words, "init") == 2
    assert "promote.yaml" in capsys.readouterr().err
    assert "part: valid" in edited.read_text()
    ask("init", *words, "overwrite=true")
    assert "part: valid" not in edited.read_text()
