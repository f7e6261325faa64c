"""KuaiRand and MIND in their published layouts: what each column becomes, slates, earlier clicks, bad files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayrank.config import ConfigError
from rayrank.schema import TEST, TRAIN, VALID
from rayrank.sources.build import build, run_here
from rayrank.sources.config import open_source
from rayrank.sources.dataset import Dataset
from rayrank.sources.kuairand import TEST_FROM, VALID_FROM, KuaiRandConfig
from rayrank.sources.mind import MindConfig
from rayrank.sources.spec import BuildSpec
from tests.published_layouts import KUAIRAND_LOG, kuairand, mind


def dataset_of(source: Any, out: Path, **options: Any) -> Dataset:
    spec = BuildSpec(source=source, path=str(out), **options)
    build(spec, run_here, lambda _: None)
    return Dataset.open(spec.path, verify=True)


def sequences(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """User id -> the (single) chunk of the user."""
    ids = dataset.users_table()["user_id"].to_pylist()
    rows = [r for g in dataset.groups() for r in dataset.read_group(*g).to_pylist()]
    return {ids[r["user"] - 1]: r for r in rows}


def test_kuairand_columns(tmp_path: Path) -> None:
    folder = kuairand(tmp_path / "raw", rows=0)
    log = [KUAIRAND_LOG]
    log += ["3,4,20220425,2359,1650900000123,1,0,1,0,0,0,1,250000,60000,0,0,0,0,1"]
    log += ["3,5,20220425,0,1650900060000,0,0,0,0,0,0,0,1500,60000,0,0,0,0,2"]
    log += [f"3,6,20220505,100,{VALID_FROM}000,0,1,0,0,0,0,0,0,60000,0,0,0,1,1"]
    log += [f"3,7,20220507,100,{TEST_FROM}000,0,0,0,0,0,0,0,0,60000,0,0,0,0,1"]
    (folder / "log_standard_4_22_to_5_08_pure.csv").write_text("\n".join(log) + "\n")
    dataset = dataset_of(
        KuaiRandConfig(path=str(folder), tasks=("click", "follow", "like", "play_time")), tmp_path / "o"
    )
    (row,) = sequences(dataset).values()
    assert row["time"] == [1650900000, 1650900060, VALID_FROM, TEST_FROM]
    assert row["part"] == [TRAIN, TRAIN, VALID, TEST]
    assert row["label_click"] == [1, 0, 0, 0]
    assert row["label_follow"] == [1, 0, 0, 0]
    assert row["label_like"] == [0, 0, 1, 0]
    assert row["label_play_time"] == [120.0, 1.5, 0, 0], "seconds, at most play_limit_s"
    context = dataset.manifest.features.context.categories
    assert context["hour"] == ("0", "23"), "hours of the log, fitted on training rows"
    assert context["tab"] == ("1", "2")
    assert row["context_is_rand"] == [1, 1, 0, 1], "only training values are known"
    items = dataset.catalogue_table().to_pydict()
    assert items["item_id"][:3] == ["0", "1", "2"]
    assert dataset.manifest.counts.orphan_items == 0
    assert dataset.manifest.features.items.categories["tag"] == ("0", "12", "65"), "of trained videos 4 and 5"
    assert items["tag"][8] == [2, 3], "two tags in one cell"
    assert dataset.schema.text is None


HOT = [
    ("is_click", "click"),
    ("is_like", "like"),
    ("is_follow", "follow"),
    ("is_comment", "comment"),
    ("is_forward", "forward"),
    ("is_hate", "hate"),
    ("long_view", "long_view"),
    ("is_profile_enter", None),
]
"""Column of the log and its task, in the order of the rows that alone have a 1 in it."""
TASKS = ("click", "like", "follow", "comment", "forward", "hate", "long_view", "play_time")


def test_kuairand_every_column_is_its_own(tmp_path: Path) -> None:
    """Row k alone has the k-th flag, and no two of the other columns agree: a column read for another is seen."""
    folder = kuairand(tmp_path / "raw", rows=0, videos=20)
    names = KUAIRAND_LOG.split(",")
    log = [KUAIRAND_LOG]
    for k in range(11):
        cells = dict.fromkeys(names, "0") | {"user_id": "3", "video_id": str(k), "date": "20220425"}
        cells |= {name: "1" for name, _ in HOT[k : k + 1]} | {"time_ms": f"{1650900000 + 100 * k}007"}
        cells |= {"hourmin": f"{k + 3}{k:02d}", "play_time_ms": str(1500 + 1000 * k), "duration_ms": "90000"}
        cells |= {"profile_stay_time": "70000", "comment_stay_time": "80000", "is_rand": str(int(k == 9))}
        log.append(",".join((cells | {"tab": str(k % 4)})[name] for name in names))
    (folder / "log_standard_4_22_to_5_08_pure.csv").write_text("\n".join(log) + "\n")
    split = {"kind": "boundary", "valid_from": 1650901000, "test_from": 1650902000}  # all but the last row train
    config = KuaiRandConfig(path=str(folder), tasks=TASKS, split=split)  # type: ignore[arg-type]
    dataset = dataset_of(config, tmp_path / "o")
    (row,) = sequences(dataset).values()
    for k, (_, task) in enumerate(HOT):
        if task is not None:
            assert row[f"label_{task}"] == [float(r == k) for r in range(11)], task
    assert row["label_play_time"] == [1.5 + r for r in range(11)]
    categories = dataset.manifest.features.context.categories
    told = {n: [(None, *categories[n])[i] for i in row[f"context_{n}"]] for n in ("tab", "hour", "is_rand")}
    assert told["tab"] == [str(r % 4) for r in range(11)]
    assert told["hour"] == [*(str(r + 3) for r in range(10)), None], "the last row is no training row"
    assert told["is_rand"] == [str(int(r == 9)) for r in range(11)]
    assert [t.column for t in dataset.schema.event_tasks] == [*(n for n, t in HOT if t), "play_time_s"]


@pytest.mark.parametrize(
    ("suffixes", "logs", "expected"),
    [
        # file names as published: Pure and 1K in one file for each half of the log, 27K in parts
        (("_pure",), "log_standard_*.csv", [0, 1]),
        (("_1k",), "log_*.csv", [2, 0, 1]),
        (("_27k_part1", "_27k_part2"), "log_standard_*.csv", [0, 1, 10, 11]),
    ],
)
def test_kuairand_logs_by_their_published_names(
    tmp_path: Path, suffixes: tuple[str, ...], logs: str, expected: list[int]
) -> None:
    folder = kuairand(tmp_path / "raw", rows=0)
    (folder / "log_standard_4_22_to_5_08_pure.csv").unlink()
    for part, suffix in enumerate(suffixes):
        halves = ("standard_4_08_to_4_21", "standard_4_22_to_5_08", "random_4_22_to_5_08")
        for half, name in enumerate(halves):
            video = 10 * half + part if len(suffixes) > 1 else half
            line = f"3,{video},20220425,2359,1650900000123,1,0,1,0,0,0,1,250000,60000,0,0,0,{int(half == 2)},1"
            (folder / f"log_{name}{suffix}.csv").write_text(f"{KUAIRAND_LOG}\n{line}\n")
    source = open_source(KuaiRandConfig(path=str(folder), logs=logs))
    tables = [t for p in source.parts() for t in source.read(p)]
    assert [int(i) for t in tables for i in t["item_id"].to_pylist()] == expected
    shown_at_random = [r for t in tables for r in t["context_is_rand"].to_pylist()]
    assert shown_at_random == [str(int(i == 2)) for i in expected]


def test_mind_lines_are_slates_with_earlier_clicks(tmp_path: Path) -> None:
    folder = mind(tmp_path / "raw", lines=1)
    lines = [
        "1\tU1\t11/12/2019 2:14:46 PM\tN3 N1\tN5-0 N6-1",
        "2\tU2\t11/12/2019 12:00:00 AM\t\tN5-1 N7-0",
        "3\tU1\t11/13/2019 2:14:46 PM\tN3 N1\tN8-1 N9-0 N10-0",
        "4\tU1\t11/14/2019 2:14:46 PM\tN3 N1\tN11 N12",
    ]
    (folder / "behaviors.tsv").write_text("\n".join(lines) + "\n")
    config = MindConfig(path=str(folder), split={"kind": "user"}, part_bytes=60)  # type: ignore[arg-type]
    assert len(open_source(config).parts()) > 1, "the earlier clicks of a user are told by several parts"
    found = sequences(dataset_of(config, tmp_path / "o"))
    ids = [f"N{n - 1}" for n in found["U1"]["item"]]
    assert ids == ["N3", "N1", "N5", "N6", "N8", "N9", "N10", "N11", "N12"], "earlier clicks once, in their order"
    assert found["U1"]["request"] == [0, 0, 1, 1, 2, 2, 2, 3, 3], "a line is one request"
    afternoon = 1573568086
    assert found["U1"]["time"][:4] == [afternoon - 86400] * 2 + [afternoon] * 2
    assert found["U1"]["part"] == [0, 0, 1, 1, 1, 1, 1, 2, 3], "earlier clicks are no targets and count in no share"
    assert found["U1"]["label_click"][:7] == [1, 1, 0, 1, 1, 0, 0]
    assert [v != v for v in found["U1"]["label_click"][7:]] == [True, True], "no label in the published test set"
    assert found["U1"]["history"] == [True, True, False, True, True, False, False, False, False], "clicks only"
    assert found["U2"]["time"] == [1573516800] * 2


EARLY, LATE = (
    "1\tU1\t11/12/2019 2:14:46 PM\tN3 N1\tN5-0 N6-1",
    "2\tU1\t11/13/2019 2:14:46 PM\tN3 N1 N6 N7\tN8-1 N9-0",
)


@pytest.mark.parametrize("part_bytes", [60, 1 << 20])
@pytest.mark.parametrize("lines", [(EARLY, LATE), (LATE, EARLY)])
def test_mind_earlier_clicks_are_those_of_the_earliest_line(
    tmp_path: Path, lines: tuple[str, str], part_bytes: int
) -> None:
    folder = mind(tmp_path / "raw", lines=1)
    (folder / "behaviors.tsv").write_text("\n".join(lines) + "\n")
    config = MindConfig(path=str(folder), split={"kind": "user"}, part_bytes=part_bytes)  # type: ignore[arg-type]
    (user,) = sequences(dataset_of(config, tmp_path / "o")).values()
    assert [f"N{n - 1}" for n in user["item"]] == ["N3", "N1", "N5", "N6", "N8", "N9"]
    assert [p > 0 for p in user["part"]] == [False, False, True, True, True, True]


@pytest.mark.parametrize(("late", "early"), [("large_test", "large_train"), ("b_later", "a_first")])
def test_mind_files_in_any_order_put_no_target_into_its_own_past(tmp_path: Path, late: str, early: str) -> None:
    """The earliest line tells no clicks, so a later one's are taken, among them what was logged in between."""
    for name, line in ((late, LATE), (early, EARLY.replace("N3 N1", ""))):
        mind(tmp_path / "raw" / name, lines=1)
        (tmp_path / "raw" / name / "behaviors.tsv").write_text(line + "\n")
    where = {"behaviors": "*/behaviors.tsv", "news": "*/news.tsv", "split": {"kind": "user"}}
    config = MindConfig(path=str(tmp_path / "raw"), **where)  # type: ignore[arg-type]
    (user,) = sequences(dataset_of(config, tmp_path / "o")).values()
    past = [f"N{n - 1}" for n, part in zip(user["item"], user["part"], strict=True) if not part]
    logged = [f"N{n - 1}" for n, part in zip(user["item"], user["part"], strict=True) if part]
    assert past == ["N3", "N1", "N7"], "N6 is a target with click 1"
    assert logged == ["N5", "N6", "N8", "N9"]


def test_mind_news(tmp_path: Path) -> None:
    config = MindConfig(path=str(mind(tmp_path / "raw")), history={"show": "all"})  # type: ignore[arg-type]
    dataset = dataset_of(config, tmp_path / "o")
    items = dataset.catalogue_table().to_pydict()
    assert items["text"][1] == 'Headline number 1. news, news1. The "1" story, told at length'
    assert items["text"][5] == "Headline number 5. news, news2."
    assert items["item_id"][-2:] == ["N40", "N41"], "news that are only referred to"
    assert dataset.manifest.counts.orphan_items == 2
    assert set(dataset.manifest.features.items.categories["entities"]) == {"Q0", "Q1", "Q2", "Q3"}
    rows = [r for g in dataset.groups() for r in dataset.read_group(*g).to_pylist()]
    assert all(all(r["history"]) for r in rows)
    targets = sum(sum(p > 0 for p in r["part"]) for r in rows)
    assert targets == 120 * 5


def test_train_and_dev_folders_are_read_together(tmp_path: Path) -> None:
    for name in ("dev", "train"):
        mind(tmp_path / "raw" / name, lines=10)
    config = MindConfig(path=str(tmp_path / "raw"), behaviors="*/behaviors.tsv", news="*/news.tsv")
    source = open_source(config)
    assert source.items().num_rows == 40  # type: ignore[union-attr]
    requests = [t["request_id"].to_pylist() for p in source.parts() for t in source.read(p)]
    logged = [t["before"].is_null().to_pylist() for p in source.parts() for t in source.read(p)]
    shown = [r for rs, ls in zip(requests, logged, strict=True) for r, known in zip(rs, ls, strict=True) if known]
    assert len(set(shown)) == 20, "impression ids start anew in every file: requests do not"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (KuaiRandConfig(path="/nowhere"), "KuaiRand needs log_standard"),
        (MindConfig(path="/nowhere"), "MIND needs behaviors.tsv"),
    ],
)
def test_a_folder_of_something_else(config: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        dataset_of(config, tmp_path / "o")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [("1\tU1\tyesterday\t\tN1-0", "times must read like"), ("1\tU1\tN1-0", "5 tab-separated fields")],
)
def test_malformed_behaviours(tmp_path: Path, line: str, message: str) -> None:
    folder = mind(tmp_path / "raw", lines=3)
    (folder / "behaviors.tsv").write_text(line + "\n")
    with pytest.raises(ConfigError, match=message):
        dataset_of(MindConfig(path=str(folder)), tmp_path / "o")


def test_a_log_without_its_label_column(tmp_path: Path) -> None:
    folder = kuairand(tmp_path / "raw")
    file = folder / "log_standard_4_22_to_5_08_pure.csv"
    file.write_text(file.read_text().replace("is_click", "clicked"))
    with pytest.raises(ConfigError, match=r"is_click.*column is missing"):
        dataset_of(KuaiRandConfig(path=str(folder)), tmp_path / "o")
