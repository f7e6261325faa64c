"""Whatever hangs becomes an error that names the config key; what ends in time is not touched."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rayrank.config import ConfigError
from rayrank.on_ray.patience import Beat, Limit, Pulse, ReadAhead, alive_through, attended

SHORT = Limit("cluster.stall_s", 0.6, "block")


def test_a_stream_that_stops_is_an_error_and_stays_closed() -> None:
    release = threading.Event()

    def stuck() -> Iterator[int]:
        yield 1
        release.wait(30)

    stream, began = ReadAhead(stuck(), 2, SHORT), time.monotonic()
    assert next(stream) == 1
    with pytest.raises(ConfigError, match=r"cluster\.stall_s: got 0\.6; no block came") as caught:
        next(stream)
    assert time.monotonic() - began < 10
    assert "raise it" in caught.value.fix
    assert list(stream) == []
    release.set()


def test_a_stream_may_hold_none() -> None:
    assert list(ReadAhead(iter([None, 0, None]), 1, SHORT)) == [None, 0, None]


def test_work_without_a_sign_of_life_is_given_up() -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError, match="no block came"):
        attended(lambda: time.sleep(30), Pulse(), SHORT)
    assert time.monotonic() - began < 10


def test_work_that_gives_signs_may_take_longer_than_the_limit() -> None:
    pulse = Pulse()

    def slow() -> str:
        for _ in range(6):
            time.sleep(0.2)
            pulse.beat()
        return "done"

    assert attended(slow, pulse, SHORT) == "done"


def test_beats_are_few_and_come_from_the_work_itself() -> None:
    told: list[float] = []
    beat, began = Beat(lambda: told.append(time.monotonic() - began), 0.2), time.monotonic()
    assert list(alive_through(iter(range(10)), lambda: (time.sleep(0.05), beat())[1])) == list(range(10))
    assert 1 <= len(told) <= 3
    assert told[0] >= 0.2
    quiet = len(told)
    time.sleep(0.5)  # whoever hangs is silent
    assert len(told) == quiet
    assert [Beat.often_enough(limit) for limit in (1800, 4)] == [30, 1]


def test_every_part_of_a_run_shows_that_it_is_alive(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding, rows, steps and evaluation: each calls ``alive``, and the fewer the data the fewer the calls."""
    from rayrank.config import parse
    from rayrank.learning.feed import Feed
    from rayrank.on_ray.fit import Listeners, fit
    from rayrank.on_ray.task import FitTask

    heard, evaluated = [""], Feed.evaluated
    monkeypatch.setattr(Feed, "evaluated", lambda self, part: heard.append("evaluating") or evaluated(self, part))
    task = parse(FitTask, {**small.raw_teacher, "stream": {"through": "direct"}})
    fit(task, Listeners(progress=heard.append, alive=lambda: heard.append(".")))
    story = "".join(entry if entry == "." else f"<{entry}>" for entry in heard)
    for part in (
        r"ready, [^<>]*>\.+<[^<>]*item texts as vectors",
        r"item texts as vectors[^<>]*>\.{20,}<rows 1/",
        r"rows 3/3[^<>]*>\.+<evaluating>",
        r"<evaluating>\.+<epoch 2/2 done",
    ):
        assert re.search(part, story), (part, story)


def test_workers_wait_for_each_other_longer_than_for_data() -> None:
    from rayrank.config import parse
    from rayrank.on_ray.cluster import ClusterConfig
    from rayrank.on_ray.task import FitTask
    from rayrank.on_ray.train import _waits

    task = parse(FitTask, {"dataset": "d", "stream": {"wait_s": 500}})
    assert _waits(task, ClusterConfig(wait_s=70, stall_s=8)) == {"wait_s": 70, "collective_s": 570, "beat_s": 2}


def test_nobody_waits_while_the_bundle_is_saved(small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rayrank.config import parse
    from rayrank.learning.collectives import Solo
    from rayrank.on_ray import fit as module
    from rayrank.on_ray.task import FitTask

    done: list[str] = []

    class Told(Solo):
        def barrier(self) -> None:
            done.append("barrier")

        def all_reduce_sum(self, tensor: Any) -> Any:
            done[:] = ["sum"]
            return tensor

    monkeypatch.setattr(module, "_save", lambda *_: done.append("save"))
    raw = {**small.raw_student, "output": str(tmp_path / "out"), "stream": {"through": "direct"}}
    module.fit(parse(FitTask, raw), module.Listeners(), Told())
    assert done == ["sum", "barrier", "save"]


@pytest.mark.parametrize("error", [ValueError("mine"), TimeoutError("mine"), SystemExit("mine")])
def test_errors_of_the_work_come_through(error: BaseException) -> None:
    def fails() -> None:
        raise error

    with pytest.raises(type(error), match="mine"):
        attended(fails, Pulse(), SHORT)


def test_a_search_whose_trials_never_report_is_ended() -> None:
    from rayrank.on_ray.goal import Single
    from rayrank.on_ray.watch import Watch, callback

    heard = callback(Watch(Single(metric="m", mode="max"), [], lambda _: None, lambda _: None), SHORT)
    trial: Any = SimpleNamespace(trial_id="x_00000", config={"point": {"number": 1, "values": {}}})
    time.sleep(0.7)
    heard.on_trial_start(trial=trial)
    heard.on_step_end(iteration=1, trials=[trial])
    time.sleep(0.7)
    with pytest.raises(ConfigError, match=r"cluster\.stall_s.*no block came"):
        heard.on_step_end(iteration=2, trials=[trial])


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_every_job_gives_up_on_workers_that_are_too_slow(small: Any, tmp_path: Path) -> None:
    """Less time than anything takes, a warm process's first answer too, stands for a process that hangs."""
    from rayrank.on_ray.cluster import ClusterConfig
    from rayrank.pipeline.distill import DistillConfig
    from rayrank.pipeline.label import LabelConfig, label
    from rayrank.pipeline.prepare import PrepareConfig, prepare
    from rayrank.pipeline.train_teacher import TrainTeacherConfig, train_teacher
    from rayrank.pipeline.tune import TuneConfig, tune

    hurried, off = ClusterConfig(stall_s=0.001), {"kind": "none"}
    source = {"kind": "synthetic", "num_users": 40, "num_items": 60, "num_rows": 1000}
    preparing = {"source": source, "path": str(tmp_path / "d"), "engine": "ray", "cluster": hurried}
    with pytest.raises(ConfigError, match=r"cluster\.stall_s.*no part of the dataset"):
        prepare(PrepareConfig.model_validate(preparing), lambda _: None)
    labelling = LabelConfig(
        dataset=small.dataset, teacher=small.teacher, output=str(tmp_path / "labels"), actors=1, cluster=hurried
    )
    with pytest.raises(ConfigError, match=r"cluster\.stall_s.*no block of labels came"):
        label(labelling, lambda _: None)
    training = {**small.raw_teacher, "output": str(tmp_path / "t"), "tracking": off, "workers": {"count": 1}}
    with pytest.raises(ConfigError, match=r"cluster\.stall_s.*no sign of life of the training workers"):
        train_teacher(TrainTeacherConfig.model_validate({**training, "cluster": hurried}), lambda _: None)
    student = {**small.raw_student, "output": str(tmp_path / "s"), "objective": {}, "tracking": off}
    searching = {"distill": DistillConfig.model_validate(student), "output": str(tmp_path / "tune"), "trials": 1}
    with pytest.raises(ConfigError, match=r"cluster\.stall_s.*no result of a trial"):
        tune(TuneConfig.model_validate({**searching, "tracking": off, "cluster": hurried}), lambda _: None)


def test_a_process_may_end_while_row_groups_are_read_ahead() -> None:
    reading = (
        "import torch; from rayrank.on_ray.patience import Limit, ReadAhead\n"
        "ahead = ReadAhead((torch.ones(100_000).sum() for _ in range(10**9)), 10**9, Limit('x', 9.0, 'sum'))\n"
        "for _ in range(3): next(ahead)\n"
    )
    done = subprocess.run([sys.executable, "-c", reading], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
