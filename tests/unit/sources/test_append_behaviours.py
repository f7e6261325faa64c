"""Appended days with behaviours in a table of their own, and appended files that are not what was counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayrank.config import ConfigError, parse
from rayrank.pipeline.prepare import PrepareConfig, PrepareResult, prepare
from rayrank.sources.dataset import Dataset

START, DAY = 1_700_006_400, 86_400
SCHEMA = f"""
name: days
tasks: [{{kind: binary, name: buy, column: buy}}]
request_id: request_id
split: {{kind: boundary, valid_from: {START + 9 * DAY}, test_from: {START + 10 * DAY}}}
"""


def written(path: Path, header: str, *lines: str, end: str = "\n") -> str:
    path.write_bytes((end.join([header, *lines]) + end).encode())
    return str(path)


def shown(folder: Path, day: int) -> str:
    """One impression an hour, of two users."""
    lines = (f"r{day}-{h},u{h % 2},i{h},{START + day * DAY + 3600 * h}" for h in range(24))
    return written(folder / f"shown-{day}.csv", "request_id,user_id,item_id,timestamp", *lines)


def bought(folder: Path, name: str, *told: tuple[int, int, int]) -> str:
    """Purchases: day and hour of the impression, seconds after it."""
    lines = (f"r{d}-{h},u{h % 2},i{h},{START + d * DAY + 3600 * h + after},1" for d, h, after in told)
    return written(folder / f"{name}.csv", "request_id,user_id,item_id,timestamp,buy", *lines)


def run(folder: Path, interactions: str, behaviours: str, **options: Any) -> PrepareResult:
    if not (folder / "dataset.yaml").exists():  # its time stamp counts in what was appended
        (folder / "dataset.yaml").write_text(SCHEMA)
    source = {"kind": "tables", "dataset": f"{folder}/dataset.yaml", "interactions": interactions}
    raw = {"source": source | {"behaviours": behaviours}, "path": f"{folder}/out", "engine": "local"}
    return prepare(parse(PrepareConfig, raw | {"rows_per_shard": 13} | options), lambda _: None)


def positives(folder: Path) -> set[int]:
    dataset, found, targets = Dataset.open(f"{folder}/out", verify=True), set(), 0
    for place in dataset.groups():
        for row in dataset.read_group(*place).to_pylist():
            told = zip(row["time"], row["part"], row["label_buy"], strict=True)
            mine = [(time, label) for time, part, label in told if part]
            targets += len(mine)
            found |= {time - START for time, label in mine if label == 1}
    assert targets == sum(getattr(dataset.manifest.counts, part) for part in ("train", "valid", "test"))
    return found


def test_a_purchase_after_midnight_does_not_stop_the_next_day(tmp_path: Path) -> None:
    run(tmp_path, shown(tmp_path, 0), bought(tmp_path, "b0", (0, 5, 60), (0, 23, 2 * 3600)))
    grown = run(tmp_path, shown(tmp_path, 1), bought(tmp_path, "b1", (1, 2, 60)), append=True)
    assert grown.manifest.counts.events == 48
    assert grown.manifest.last_time == START + DAY + 23 * 3600, "of the impressions"
    assert positives(tmp_path) == {5 * 3600, 23 * 3600, DAY + 2 * 3600}
    assert not any("appended behaviour" in line for line in grown.summary())
    with pytest.raises(ConfigError, match="must be later than all the dataset has"):
        run(tmp_path, shown(tmp_path, 1), bought(tmp_path, "b2", (1, 3, 60)), append=True)


def test_behaviours_of_impressions_the_dataset_had_are_counted(tmp_path: Path) -> None:
    run(tmp_path, shown(tmp_path, 0), bought(tmp_path, "b0", (0, 5, 60)))
    grown = run(tmp_path, shown(tmp_path, 1), bought(tmp_path, "b1", (0, 22, DAY), (0, 1, 9), (1, 2, 60)), append=True)
    assert positives(tmp_path) == {5 * 3600, DAY + 2 * 3600}
    (line,) = [line for line in grown.summary() if "appended behaviour" in line]
    assert line.startswith("warning: 2 of 3 appended behaviours match no appended impression")
    assert "prepare the whole anew" in line
    again = run(tmp_path, f"{tmp_path}/shown-1.csv", f"{tmp_path}/b1.csv", append=True)
    assert not again.written
    assert not any("appended behaviour" in line for line in again.summary())


def test_users_who_only_bought(tmp_path: Path) -> None:
    """Some bucket has behaviours and no impression; and an append with nothing but behaviours is none."""
    run(tmp_path, shown(tmp_path, 0), bought(tmp_path, "b0", (0, 5, 60)), rows_per_shard=1)
    header, lines = "request_id,user_id,item_id,timestamp,buy", [f"r,v{k},i1,{START + DAY + k},1" for k in range(9)]
    grown = run(
        tmp_path, shown(tmp_path, 1), written(tmp_path / "b1.csv", header, *lines), append=True, rows_per_shard=1
    )
    assert (grown.manifest.counts.events, grown.manifest.counts.unmatched_behaviours) == (48, 9)
    nothing = written(tmp_path / "none.csv", "request_id,user_id,item_id,timestamp")
    with pytest.raises(ConfigError, match="interactions must not be empty"):
        run(tmp_path, nothing, bought(tmp_path, "b2", (1, 5, 60)), append=True, rows_per_shard=1)
    assert Dataset.open(f"{tmp_path}/out").manifest == grown.manifest


@pytest.mark.parametrize("append", [False, True])
def test_rows_that_were_not_counted_are_refused(tmp_path: Path, append: bool) -> None:
    """A line end that nobody counts: row numbers would be given twice, and events dropped as repeats."""
    run(tmp_path, shown(tmp_path, 0), bought(tmp_path, "b0", (0, 5, 60)))
    before = Dataset.open(f"{tmp_path}/out").manifest
    lines = [f"r1-{h},u{h % 2},i{h},{START + DAY + 3600 * h}" for h in range(24)]
    odd = tmp_path / "odd.csv"
    odd.write_bytes(("request_id,user_id,item_id,timestamp\n" + "\r".join(lines) + "\r").encode())
    with pytest.raises(ConfigError, match="2 rows were counted but 25 read"):
        run(tmp_path, str(odd), bought(tmp_path, "b1", (1, 5, 60)), append=append)
    assert Dataset.open(f"{tmp_path}/out", verify=True).manifest == before
