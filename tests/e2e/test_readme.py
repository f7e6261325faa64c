"""Every job command and the Python block of the README, run in their order on small files in MovieLens's layout."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1500)]
ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ELSEWHERE = {"make quickstart": "tests/e2e/test_quickstart.py", "ray job submit": "tests/e2e/test_ray_job_submit.py"}
"""Commands that have a test of their own; `make test` is what runs these tests."""
ENCODER = "encoder={kind: tiny, width: 16}"
SHORT = "learning={epochs: 1, rows: {epochs: 1}}"
SMALL = {
    "train_teacher": [ENCODER, SHORT, "workers.count=0"],
    "label": ["actors=0"],
    "tune": ["trials=2", f"distill.{SHORT}"],
    "distill": [SHORT],
    "evaluate": ["resamples=50", "cost_requests=5"],
    "promote": ["resamples=100", "gates.skip=[gain_auc, gain_gauc, lift, calibration, latency]"],
    "score": ["actors=0"],
    "compare": ["resamples=100", "cost_requests=5"],
    "funnel": ["requests=10", "timed=5", "repeats=1"],
    "serve": ["for_s=1", "fused=true", "http.port=8458"],
    "loadtest": ["url=http://127.0.0.1:8456"],
}
"""Less of everything; the gates are skipped because so little data teaches nothing."""


def commands() -> list[str]:
    """Lines of the README's shell blocks, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder with MovieLens files (40 users, 60 movies) and a table of clicks with items."""
    made, chance = tmp_path_factory.mktemp("readme"), random.Random(0)
    raw = made / "path" / "to" / "ml-1m"
    raw.mkdir(parents=True)
    movies = [
        f"{m}::Movie {m} ({1950 + m % 50})::{chance.choice(['Drama', 'Comedy|Action', 'Horror'])}" for m in range(1, 61)
    ]
    (raw / "movies.dat").write_text("\n".join(movies) + "\n", encoding="latin-1")
    users = [
        f"{u}::{chance.choice('FM')}::{chance.choice([1, 18, 25, 35, 45, 50, 56])}::{u % 20}::00000"
        for u in range(1, 41)
    ]
    (raw / "users.dat").write_text("\n".join(users) + "\n")
    ratings = [
        f"{u}::{m}::{chance.randint(1, 5)}::{978300000 + 60 * i}"
        for u in range(1, 41)
        for i, m in enumerate(chance.sample(range(1, 61), 40))
    ]
    (raw / "ratings.dat").write_text("\n".join(ratings) + "\n")
    clicks = ["user_id,item_id,timestamp"]
    clicks += [f"u{u},i{chance.randint(1, 50)},{1700000000 + 100 * i + u}" for u in range(30) for i in range(20)]
    (made / "clicks.csv").write_text("\n".join(clicks) + "\n")
    items = ["item_id,title,category"] + [f"i{i},A thing with number {i} on it,{'abc'[i % 3]}" for i in range(1, 51)]
    (made / "items.csv").write_text("\n".join(items) + "\n")
    (made / "new_items.csv").write_text("item_id,title,category\nnew-1,A thing that nobody has clicked yet,a\n")
    return made


def run(folder: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT / "platform"), str(ROOT)])
    variables = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    variables.pop("RAY_ADDRESS", None)
    return subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True, timeout=300, check=False)


def adapted(command: str) -> list[str]:
    """The command with this interpreter, the checkout's files, and less of everything."""
    words = shlex.split(command.replace("jobs/configs", f"{ROOT}/jobs/configs").replace("clicks.parquet", "clicks.csv"))
    name = words[2].removeprefix("jobs.")
    ours = name == "tune" and "jobs/configs" in command
    space = [f"space={ROOT}/tune_spaces/distill.yaml"] if ours else []  # its path is relative to the checkout
    return [sys.executable, *words[1:], *SMALL.get(name, []), *space]


def test_every_job_command_runs(folder: Path) -> None:
    jobs = [line for line in commands() if line.startswith("python -m jobs")]
    assert len(jobs) >= 21
    for line in jobs:
        done = run(folder, [*adapted(line), *(["--debug"] if "jobs." in line else [])])
        allowed = {0, 3} if ".doctor" in line else {0}  # a busy port of this machine is the doctor's to find
        if (
            ".export_served" in line
        ):  # nobody asked the service anything; tests/unit/pipeline/test_export_served.py does
            allowed = {2}
            assert "let the service answer first" in done.stderr
        if ".loadtest" in line:  # nor does one run: tests/serve/test_failures.py asks one
            allowed = {2}
            assert "no ranking service answers there" in done.stderr
        assert done.returncode in allowed, f"{line}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"


def test_serve_starts_the_promoted_release(folder: Path) -> None:
    made = folder / "runs" / "movielens" / "releases"
    assert json.loads((made / "champion.json").read_text())
    words = [sys.executable, "-m", "jobs.serve", f"{ROOT}/jobs/configs/serve.yaml", f"releases={made}", "for_s=1"]
    done = run(
        folder, [*words, f"playground={ROOT}/serve_apps/playground.html", "fused=true", "http.port=8457", "--debug"]
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "served release" in done.stdout


def test_every_other_command_has_a_test_of_its_own() -> None:
    others = [line for line in commands() if not line.startswith(("python -m jobs", "make test", "make serve"))]
    for line in others:
        (test,) = [path for start, path in ELSEWHERE.items() if line.startswith(start)]
        assert (ROOT / test).is_file()
