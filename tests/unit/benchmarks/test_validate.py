"""The benchmark of validate: its data is clean, its rows are all read, and its last line is the claim."""

import json

from benchmarks import validate


def test_the_last_line_is_the_claim(capsys, monkeypatch):
    monkeypatch.setattr(validate.os, "sched_setaffinity", lambda *_: None)
    validate.main(["--rows", "20000", "--quick"])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["rows"] == 20_000
    assert set(line["by_format"]) == {"csv", "parquet"}
    assert line["seconds_per_million_rows"] == max(wall for wall, _ in line["by_format"].values()) > 0
