"""Teacher, its labels and three students of every seed, made when they are asked for and found again afterwards.

The students have one shape. The undistilled one takes nothing from the teacher (and so has no text), the next has its
item table, the distilled one its opinions too. Each gets the same search: every number of passes of the first stage
below is trained with one seed, the best on valid is used for all seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.quality_ml1m import Setting, recipe_of
from rayrank.bundle import Bundle, load_bundle
from rayrank.config import parse
from rayrank.pipeline.comparison import judged_task
from rayrank.pipeline.distill import DistillConfig, distill
from rayrank.pipeline.label import LabelConfig, label
from rayrank.pipeline.prepare import PrepareConfig, prepare
from rayrank.pipeline.train_teacher import TrainTeacherConfig, train_teacher
from rayrank.pipeline.training import TrainingResult
from rayrank.sources.dataset import Dataset

UNDISTILLED, TABLE, DISTILLED, TEACHER = (
    "undistilled student",
    "student with item table",
    "distilled student",
    "teacher",
)
PASSES = (3, 5, 8)
"""The search of every student: epochs of the first stage."""
SEARCH_SEED = 0
_HARD: Mapping[str, Any] = {"objective": {"distillation": None}, "labels": None}


@dataclass(frozen=True)
class Arms:
    """The models of one dataset."""

    setting: Setting
    dataset: Dataset
    passes: tuple[int, ...] = PASSES
    say: Callable[[str], None] = print
    _chosen: dict[str, int] = field(default_factory=dict)
    _made: dict[str, TrainingResult] = field(default_factory=dict)

    @staticmethod
    def of(setting: Setting, passes: tuple[int, ...], say: Callable[[str], None]) -> Arms:
        """Prepares the dataset, or finds it."""
        recipe = setting.recipes / "prepare.yaml"
        raw: dict[str, Any] = {"source": dict(setting.source), "path": str(setting.work / "dataset"), "engine": "local"}
        config = setting.config(PrepareConfig, "prepare", raw) if recipe.is_file() else parse(PrepareConfig, raw)
        return Arms(setting, Dataset.open(prepare(config, say).path), passes, say)

    @cached_property
    def task(self) -> str:
        """The binary task that order is judged on."""
        return judged_task(self.dataset.schema, None)

    @cached_property
    def students(self) -> tuple[str, ...]:
        """Arms that there are: without texts the teacher has no item table to give."""
        return (UNDISTILLED, TABLE, DISTILLED) if self.teacher_config(0).model.inputs.text else (UNDISTILLED, DISTILLED)

    def folder(self, arm: str, seed: int) -> str:
        """Of the arm's bundle, trained when it is not there."""
        if arm == TEACHER:
            return self._teacher(seed).bundle
        return self._student(arm, seed, self.chosen(arm)).bundle

    def bundle(self, arm: str, seed: int) -> Bundle:
        """The arm's model."""
        return load_bundle(self.folder(arm, seed))

    def chosen(self, arm: str) -> int:
        """Passes of the first stage that did best on valid."""
        if arm not in self._chosen:
            metric = f"streaming/{self.task}/auc"
            found = {n: self._student(arm, SEARCH_SEED, n).metrics[metric] for n in self.passes}
            self.say(f"{arm}, valid {metric} by passes of the first stage: {found}")
            self._chosen[arm] = max(found, key=lambda n: found[n])
        return self._chosen[arm]

    def recipe(self, arm: str, seed: int) -> list[Any]:
        """What makes the arm, for keys of rows."""
        teacher = recipe_of(self.teacher_config(seed))
        if arm == TEACHER:
            return [teacher]
        made = [recipe_of(self.student_config(arm, seed, self.passes[0])), list(self.passes)]
        if arm != UNDISTILLED:
            made.append(teacher)
        if arm == DISTILLED:
            labels = self.label_config(seed)
            made.append([labels.samples, labels.sample_power, labels.mined, labels.pool])
        return made

    def teacher_config(self, seed: int) -> TrainTeacherConfig:
        """The teacher of a seed."""
        own = {"cache": str(self.setting.work / "cache"), "learning": {"seed": seed}}
        layers = (self._here | own, self.setting.teacher)
        config = self.setting.config(TrainTeacherConfig, "train_teacher", *layers)
        return config.model_copy(update={"output": self._place("teacher", seed, config)})

    def label_config(self, seed: int) -> LabelConfig:
        """Labels of a seed's teacher."""
        teacher = self.teacher_config(seed).output
        here = {"dataset": self.dataset.path, "teacher": teacher, "output": f"{teacher}-labels", "actors": 0}
        return self.setting.config(LabelConfig, "label", here)

    def student_config(self, arm: str, seed: int, passes: int) -> DistillConfig:
        """A student of a seed."""
        labels = self.label_config(seed)
        taught = {"teacher": labels.teacher, "labels": labels.output}
        mine: dict[str, tuple[Mapping[str, Any], ...]] = {
            UNDISTILLED: (_HARD, {"teacher": None, "model": {"kind": "student", "inputs": {"text": False}}}),
            TABLE: (_HARD,),
            DISTILLED: (),
        }
        searched = {"learning": {"seed": seed, "rows": {"epochs": passes}}}
        layers = (self._here, taught, self.setting.student, *mine[arm], searched)
        config = self.setting.config(DistillConfig, "distill", *layers)
        return config.model_copy(update={"output": self._place(arm.replace(" ", "-"), seed, config)})

    def _teacher(self, seed: int) -> TrainingResult:
        config = self.teacher_config(seed)
        if config.output not in self._made:
            self._made[config.output] = train_teacher(config, self.say)
        return self._made[config.output]

    def _student(self, arm: str, seed: int, passes: int) -> TrainingResult:
        config = self.student_config(arm, seed, passes)
        if config.output not in self._made:
            if config.teacher:
                self._teacher(seed)
            if config.labels:
                label(self.label_config(seed), self.say)
            self._made[config.output] = distill(config, self.say)
        return self._made[config.output]

    @cached_property
    def _here(self) -> dict[str, Any]:
        unset = str(self.setting.work / "unset")  # replaced by the folder that the rest of the config names
        return {"dataset": self.dataset.path, "output": unset, "workers": {"count": 0}, "tracking": {"kind": "none"}}

    def _place(self, name: str, seed: int, config: TrainTeacherConfig | DistillConfig) -> str:
        taught = [Path(place).name for place in (config.teacher, config.labels) if place]
        key = results.key_of(self.dataset.manifest.data_fingerprint, recipe_of(config), taught)
        return str(Path(self.setting.work) / f"{name}-{seed}-{key[:8]}")
