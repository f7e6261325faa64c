"""The metric that chooses epochs and trials, on data whose tasks have other names."""

from __future__ import annotations

import pytest

from rayrank.config import ConfigError
from rayrank.learning.blend import SHARES
from rayrank.learning.choice import chosen, with_choice
from rayrank.learning.spec import LearningSpec
from rayrank.schema import BinaryTask, DatasetSchema, RegressionTask

CLICK = BinaryTask(name="click", column="c")
STARS = RegressionTask(name="stars", column="s", low=1.0, high=5.0)


def schema(*tasks: BinaryTask | RegressionTask) -> DatasetSchema:
    return DatasetSchema(name="mine", tasks=tasks)


def test_the_default_follows_the_tasks() -> None:
    assert chosen("like/auc", schema(BinaryTask(name="like", column="l"), CLICK)) == ("like/auc", False)
    assert chosen(None, schema(STARS, CLICK)) == ("click/auc", False)
    assert chosen(None, schema(STARS)) == ("stars/rmse", True)
    learning = with_choice(LearningSpec(), schema(STARS))
    assert (learning.choose, learning.lower_is_better) == ("stars/rmse", True)
    asked = LearningSpec(choose="stars/mae", lower_is_better=True)
    assert with_choice(asked, schema(CLICK, STARS)) is asked


def test_a_task_that_is_not_there_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match="tasks of this dataset: click, stars"):
        chosen("clicks/auc", schema(CLICK, STARS))
    with pytest.raises(ConfigError, match="no task 'like'"):
        chosen("like/auc", schema(CLICK, STARS))


@pytest.mark.parametrize("choose", ["click/ndcg", "click/rmse", "stars/auc", "stars"])
def test_a_metric_that_its_task_does_not_have_is_told_at_once(choose: str) -> None:
    with pytest.raises(ConfigError, match=r"learning\.choose.*metrics of task (click: auc|stars: rmse), "):
        chosen(choose, schema(CLICK, STARS))


def test_the_history_always_has_a_share() -> None:
    assert 0.0 <= float(SHARES.min()) < float(SHARES.max()) < 1.0
