"""Promotion: every gate can refuse, a refusal changes nothing, a success moves the alias last."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rayrank.config import ConfigError, parse
from rayrank.metrics.bootstrap import Resamples
from rayrank.metrics.evaluated import Evaluated, Judged
from rayrank.metrics.summary import metrics_of
from rayrank.pipeline.comparison import Comparison, Entry, Evidence
from rayrank.pipeline.cost import Cost
from rayrank.pipeline.gates import GatesConfig, judge
from rayrank.pipeline.promote import PromoteConfig, decide, promote
from rayrank.ranking.release import Release, champion, load_release, save_release, set_alias
from rayrank.schema import BinaryTask, DatasetSchema
from rayrank.tracking import NullRun, NullTracker

SCHEMA = DatasetSchema(name="made", tasks=(BinaryTask(name="like", column="like"),))
FAST, SLOW = Cost(500, (0.004,) * 30), Cost(500, (0.004,) * 20 + (0.5,) * 10)
RESAMPLES = Resamples.draw(np.arange(1, 200), 100)
LOOSE = {"gain": -1.0, "lift": -9.0, "calibration_low": 0.01, "calibration_high": 99.0, "latency_ms": 1e6}

OFF = {"tracking": {"kind": "none"}}


def quiet(_line):
    pass


def entry(model, noise, shift=0.0, cost=FAST, baseline=False):
    """A model whose logits are the truth plus noise (large: nothing learned), moved by ``shift``."""
    generator = np.random.default_rng(0)
    user, truth = generator.integers(1, 200, 4000), generator.normal(size=4000)
    label = (generator.random(4000) < 1 / (1 + np.exp(-2 * truth))).astype(np.float32)
    own = np.random.default_rng(len(model)).normal(size=4000)
    logit = 2 * (truth + noise * own) / (1 + noise**2) + shift
    judged = Judged.of(user, label, 1 / (1 + np.exp(-logit)))
    metrics = metrics_of(Evaluated({"like": judged}, {}, {}), SCHEMA)
    protocol = "both" if baseline else "streaming"
    return Entry(model, protocol, metrics, 1, Evidence.of("like", judged, RESAMPLES), baseline, cost, f"id-{model}")


def comparison(teacher=None, student=None, baseline=None):
    found = (
        baseline or entry("item mean", 3.0, baseline=True),
        teacher or entry("teacher", 0.3),
        student or entry("student", 0.35),
    )
    return Comparison(SCHEMA, "test", "like", found, RESAMPLES)


def failed(found, **gates):
    return {result.gate for result in judge(found, GatesConfig(**gates)) if not result.passed}


def test_a_good_pair_passes_every_gate():
    assert failed(comparison()) == set()
    assert len(judge(comparison(), GatesConfig())) == 6


def test_gain_refuses_a_teacher_no_better_than_the_baseline():
    same = comparison(baseline=replace(entry("teacher", 0.3, baseline=True), model="item mean"))
    assert failed(same) == {"gain_auc", "gain_gauc"}  # the interval is exactly 0, not above it
    assert failed(comparison(teacher=entry("teacher", 9.0)), lift=-9.0) == {"gain_auc", "gain_gauc"}


def test_gain_refuses_what_could_be_chance():
    close = comparison(baseline=entry("item mean", 0.32, baseline=True))
    assert {"gain_auc", "gain_gauc"} & failed(close)


def test_gain_refuses_without_a_baseline():
    found = comparison()
    assert failed(replace(found, entries=found.entries[1:])) == {"gain_auc", "gain_gauc"}


def test_lift_refuses_a_student_that_forgot():
    assert failed(comparison(student=entry("student", 1.0))) == {"lift"}
    kept = next(r for r in judge(comparison(), GatesConfig()) if r.gate == "lift")
    student, teacher = (entry(n, x).metrics["like/auc"] for n, x in (("student", 0.35), ("teacher", 0.3)))
    assert kept.value == pytest.approx((student - 0.5) / (teacher - 0.5))


@pytest.mark.parametrize("model", ["teacher", "student"])
@pytest.mark.parametrize("shift", [-0.8, 0.8])
def test_calibration_refuses_too_much_and_too_little(model, shift):
    shifted = comparison(**{model: entry(model, 0.3, shift=shift)})
    results = [r for r in judge(shifted, GatesConfig()) if not r.passed]
    assert [(r.gate, r.name) for r in results] == [("calibration", f"calibration of the {model}")]
    assert (results[0].value > 1.1) == (shift > 0)


def test_latency_refuses_a_slow_tail():
    assert failed(comparison(student=entry("student", 0.35, cost=SLOW))) == {"latency"}
    assert failed(comparison(student=entry("student", 0.35, cost=None))) == {"latency"}


def test_skipped_gates_are_left_out():
    assert failed(comparison(student=entry("student", 1.0)), skip=("lift",)) == set()


class Recorder(NullTracker):
    """Remembers what a registry would have been told; may fail at it."""

    def __init__(self, broken=False):
        self.calls, self.broken = [], broken

    def register(self, model, folder, run_id=None, tags=None, note=""):  # noqa: ARG002
        self.calls.append(("register", model, Path(folder).name))
        return "7"

    def set_alias(self, model, alias, version):
        if self.broken:
            raise ConnectionError("registry is down")
        self.calls.append(("alias", model, alias, version))


def config(folder, **more):
    raw = OFF | {"dataset": str(folder / "data"), "teacher": str(folder / "t"), "student": "/elsewhere/s"}
    return parse(PromoteConfig, raw | {"releases": str(folder / "releases"), **more})


def test_success_writes_the_release_then_the_alias(tmp_path):
    tracker = Recorder()
    result = decide(config(tmp_path, fusion={"like": 2.0}), comparison(), tracker, quiet)
    assert result.promoted
    assert not result.refused
    release = load_release(tmp_path / "releases")
    assert (release.teacher_id, release.student_id, release.fusion) == ("id-teacher", "id-student", {"like": 2.0})
    assert (release.teacher, release.student) == (str(tmp_path / "t"), "/elsewhere/s")
    assert release.metrics["lift_kept_by_the_student"] == pytest.approx(result.gates[2].value)
    name = release.release_id
    assert tracker.calls == [("register", "rayrank", name), ("alias", "rayrank", "champion", "7")]
    raw = json.loads((tmp_path / "releases" / name / "release.json").read_text())
    assert raw["teacher"] == "../../t"  # a run's folder can be moved as a whole
    assert "champion is now" in result.summary()[-1]
    again = decide(config(tmp_path, fusion={"like": 2.0}), comparison(), Recorder(), quiet)
    assert again.release.release_id == name == again.previous


def test_refusal_changes_nothing(tmp_path):
    before = Release(release_id="before", student="/s", fusion={"like": 1.0})
    save_release(tmp_path / "releases", before)
    set_alias(tmp_path / "releases", "before")
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    tracker = Recorder()
    said = []
    result = decide(config(tmp_path), comparison(student=entry("student", 1.0)), tracker, said.append)
    assert said == [f"{sum(g.passed for g in result.gates)} of 6 gates passed"]  # the summary has a line of each
    assert result.refused
    assert (result.release, result.path, result.previous) == (None, None, "before")
    assert tracker.calls == []
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files
    lines = result.summary()
    assert any(line.startswith("FAILED  lift kept by the student") for line in lines)
    assert any("the champion stays before" in line for line in lines)


def test_a_broken_registry_leaves_the_old_champion(tmp_path):
    save_release(tmp_path / "releases", Release(release_id="before", student="/s", fusion={"like": 1.0}))
    set_alias(tmp_path / "releases", "before")
    with pytest.raises(ConnectionError):
        decide(config(tmp_path), comparison(), Recorder(broken=True), quiet)
    assert champion(tmp_path / "releases").release_id == "before"


def test_promote_end_to_end(world, tmp_path):
    raw = OFF | {"dataset": world.dataset, "teacher": world.teacher, "student": world.student, "resamples": 100}
    raw |= {"releases": str(tmp_path / "releases"), "gates": {"requests": 20, "candidates": 50}}
    strict = promote(parse(PromoteConfig, raw | {"gates": {"requests": 20, "gain": 0.4}}), quiet)
    assert strict.refused
    assert champion(tmp_path / "releases") is None
    loose = promote(parse(PromoteConfig, raw | {"gates": {"requests": 20, **LOOSE}}), quiet)
    assert loose.promoted
    found = champion(tmp_path / "releases")
    assert (found.teacher, found.student, found.dataset) == (world.teacher, world.student, world.dataset)
    assert found.teacher_id == loose.comparison.find("teacher", "streaming").bundle_id


def test_what_evaluate_found_is_judged_without_scoring_again(world, tmp_path, monkeypatch):
    from rayrank.pipeline.evaluate import EvaluateConfig, evaluate

    bundles = OFF | {"dataset": world.dataset, "teacher": world.teacher, "student": world.student}
    timed = {"resamples": 100, "cost_requests": 20, "cost_candidates": 50}
    found = evaluate(parse(EvaluateConfig, bundles | timed | {"output": str(tmp_path / "out")}), quiet).comparison
    monkeypatch.setattr("rayrank.pipeline.promote.compared", lambda *_: pytest.fail("scored again"))
    raw = bundles | {"releases": str(tmp_path / "releases"), "resamples": 100}
    gates = {"requests": 20, "candidates": 50, **LOOSE}
    assert promote(parse(PromoteConfig, raw | {"gates": gates}), quiet, found).promoted
    with pytest.raises(ValueError, match="not as the gates ask"):
        promote(parse(PromoteConfig, raw | {"gates": gates | {"requests": 30}}), quiet, found)
    with pytest.raises(ValueError, match="not about this teacher on valid"):
        promote(parse(PromoteConfig, raw | {"gates": gates, "part": "valid"}), quiet, found)
    for other, message in (
        ({"task": "finish"}, "not 'finish' of"),
        ({"resamples": 101}, "not of 101 resamples"),
        ({"seed": 1}, "with seed 1"),
    ):
        with pytest.raises(ValueError, match=message):
            promote(parse(PromoteConfig, raw | {"gates": gates} | other), quiet, found)
    with pytest.raises(ValueError, match="on other data"):
        promote(parse(PromoteConfig, raw | {"gates": gates}), quiet, replace(found, data_fingerprint="another"))


def test_promoting_twice_registers_one_version(world, tmp_path):
    tracking = {"kind": "mlflow", "uri": f"sqlite:///{tmp_path}/mlflow.db"}
    raw = {"dataset": world.dataset, "teacher": world.teacher, "student": world.student, "tracking": tracking}
    raw |= {"releases": str(tmp_path / "releases"), "resamples": 100}
    gates = {"requests": 20, "candidates": 50, **LOOSE}
    first, again = (promote(parse(PromoteConfig, raw | {"gates": gates}), quiet) for _ in range(2))
    assert (first.model_version, again.model_version) == ("1", "1")
    other = promote(parse(PromoteConfig, raw | {"gates": gates, "fusion": {"stars": 1.0}}), quiet)
    assert other.model_version == "2", "another release is another version"


def test_swapped_bundles_and_unknown_tasks_are_refused(world, tmp_path):
    raw = OFF | {
        "dataset": world.dataset,
        "teacher": world.student,
        "student": world.student,
        "releases": str(tmp_path),
    }
    with pytest.raises(ConfigError, match="this bundle is a student"):
        promote(parse(PromoteConfig, raw), quiet)
    with pytest.raises(ConfigError, match="fusion"):
        promote(parse(PromoteConfig, raw | {"fusion": {"likes": 1.0}}), quiet)
    with pytest.raises(ConfigError, match="calibration_low must be below"):
        parse(PromoteConfig, raw | {"gates": {"calibration_low": 2.0}})


def test_a_saved_release_is_never_changed(world, tmp_path):
    other = Release(release_id="mine", student="/s", student_id="x", teacher="/t", teacher_id="y", fusion={"like": 1.0})
    save_release(tmp_path, other)
    raw = OFF | {
        "dataset": world.dataset,
        "teacher": world.teacher,
        "student": world.student,
        "releases": str(tmp_path),
    }
    with pytest.raises(ConfigError, match="holds other bundles"):
        promote(parse(PromoteConfig, raw | {"release_id": "mine"}), quiet)


def test_null_run_is_what_tests_inject():
    assert NullRun().run_id is None
