"""What is heard of trials while Ray Tune runs them: remembered, told to people, kept when one has ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from rayrank.on_ray.goal import AnyGoal, Judged, judged, mode_of, name_of
from rayrank.on_ray.patience import Limit, Pulse
from rayrank.on_ray.record import Finished, Trial
from rayrank.on_ray.trial import EPOCHS, SCHEDULE, TRAINING, WHOLE


@dataclass
class _Seen:
    number: int
    start: dict[str, Any]
    params: dict[str, Any]
    epochs: list[list[dict[str, float]]] = field(default_factory=list)
    schedule: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    training_s: float = 0.0
    whole: bool = False
    error: str | None = None

    def finished(self) -> Finished:
        return Finished(
            number=self.number,
            start=self.start,
            params=self.params,
            epochs=self.epochs,
            seconds=self.seconds,
            training_s=self.training_s,
            stopped=not self.whole,
            schedule=self.schedule,
        )


class Watch:
    """The trials of a search: those that were there already, and those that are heard of.

    Args:
        goal: what is good.
        known: trials of an earlier, interrupted or smaller search.
        keep: called with every trial that ended without an error.
        progress: hears a line for every trial.
        folds: that a trial must end to be judged; None: no cross-validation.
    """

    def __init__(
        self,
        goal: AnyGoal,
        known: Sequence[Finished],
        keep: Callable[[Finished], None],
        progress: Callable[[str], None],
        folds: int | None = None,
    ) -> None:
        self._goal, self._known, self._keep, self._progress = goal, tuple(known), keep, progress
        self._folds = folds
        self._seen: dict[str, _Seen] = {}
        self._numbers = {trial.number for trial in known}

    def began(self, trial: Any) -> _Seen:
        """A trial starts, or goes on; its number is its own, or the next that is free."""
        point = trial.config["point"]
        if trial.trial_id not in self._seen:
            number = int(point.get("number") or next(n for n in count(1) if n not in self._numbers))
            self._numbers.add(number)
            self._seen[trial.trial_id] = _Seen(number, dict(point["values"]), dict(point["values"]))
        return self._seen[trial.trial_id]

    def told(self, trial: Any, result: dict[str, Any]) -> None:
        """An epoch has ended, or the trial."""
        seen = self.began(trial)
        seen.epochs, seen.whole = result[EPOCHS], bool(result[WHOLE])
        seen.schedule = result[SCHEDULE]
        seen.params = dict(seen.schedule[-1]) if seen.schedule else seen.params
        seen.seconds, seen.training_s = float(result.get("time_total_s", 0.0)), float(result[TRAINING])

    def ended(self, trial: Any) -> None:
        """A trial has ended, by itself or by the scheduler."""
        seen = self.began(trial)
        made = made_of(seen.finished(), self._goal, seen.error, self._folds)
        found = made.error if made.score is None else f"{name_of(self._goal)} {made.score:.4f}"
        spread = "" if made.spread is None else f" ± {made.spread:.4f} over {len(made.folds)} folds"
        values = ", ".join(f"{path.rsplit('.', 1)[-1]} {_short(v)}" for path, v in seen.params.items())
        if seen.epochs:
            self._keep(seen.finished())
        self._progress(f"trial {seen.number}: {found}{spread} after {seen.seconds:.1f} s ({values})")

    def failed(self, trial: Any) -> None:
        """A trial ended with an error."""
        seen = self.began(trial)
        seen.error = _last_line(trial)
        self._progress(f"trial {seen.number} failed: {seen.error}")

    def ranked(self) -> list[Trial]:
        """All trials, best first; those without a score last."""
        sign = 1.0 if mode_of(self._goal) == "max" else -1.0
        made = [replace(made_of(trial, self._goal, folds=self._folds), found=True) for trial in self._known]
        made += [made_of(seen.finished(), self._goal, seen.error, self._folds) for seen in self._seen.values()]
        return sorted(made, key=lambda t: (t.score is None, -sign * (t.score or 0.0), t.number))


def made_of(trial: Finished, goal: AnyGoal, error: str | None = None, folds: int | None = None) -> Trial:
    """What the epochs of a trial come to under a goal.

    Nothing that could win where it crashed, or was cut before the end of its last fold: a mean over fewer folds, or
    over half a fold, compares with no other.
    """
    said, lost = judged(goal, trial.epochs), None
    if any(trial.epochs) and said.score is None:
        lost = "the metric is not a number in any epoch"
    if folds and trial.stopped:
        lost = f"cut off in fold {len(trial.epochs)} of {folds}"
    if error or lost:
        said = Judged(None, said.metrics, (), {})
    return Trial(
        number=trial.number,
        params=trial.params,
        score=said.score,
        metrics=said.metrics,
        history=[metrics for epochs in trial.epochs for metrics in epochs],
        seconds=trial.seconds,
        stopped=error is None and trial.stopped,
        error=error or lost,
        folds=said.folds,
        values=said.values,
        schedule=trial.schedule if any(one != trial.params for one in trial.schedule) else [],
        training_s=trial.training_s,
    )


def callback(watch: Watch, limit: Limit) -> Any:
    """The same for Ray Tune, which calls it; no sign of any trial for too long is an error."""
    from ray import tune

    pulse = Pulse()
    wrong: list[Exception] = []

    def heard(listen: Callable[..., object], *told: Any) -> None:
        # Some errors of a callback Tune only logs; those of a step end the search.
        pulse.beat()
        try:
            listen(*told)
        except Exception as error:
            wrong.append(error)

    class Callback(tune.Callback):
        def on_step_end(self, **info: Any) -> None:  # type: ignore[override]  # noqa: ARG002
            if wrong:
                raise wrong[0]
            pulse.check(limit)  # Tune takes a step at least every second, whatever its trials do

        def on_trial_start(self, **info: Any) -> None:  # type: ignore[override]
            heard(watch.began, info["trial"])

        def on_trial_result(self, **info: Any) -> None:  # type: ignore[override]
            heard(watch.told, info["trial"], info["result"])

        def on_trial_complete(self, **info: Any) -> None:  # type: ignore[override]
            heard(watch.ended, info["trial"])

        def on_trial_error(self, **info: Any) -> None:  # type: ignore[override]
            heard(watch.failed, info["trial"])

    return Callback()


def _last_line(trial: Any) -> str:
    """What went wrong, from the end of the trial's error file."""
    place = getattr(trial, "error_file", None)
    lines = Path(place).read_text(errors="replace").strip().splitlines() if place and Path(place).is_file() else []
    return lines[-1][:500] if lines else "unknown error"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
