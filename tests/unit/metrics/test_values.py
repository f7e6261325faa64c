"""LogLoss, normalised entropy, RMSE, MAE and calibration against scikit-learn and by hand."""

import math

import numpy as np
import pytest
from sklearn.metrics import log_loss as sk_log_loss
from sklearn.metrics import mean_absolute_error, mean_squared_error

from rayrank.metrics import values

NAN = float("nan")


def binary(seed=0, rows=500):
    generator = np.random.default_rng(seed)
    probability = generator.random(rows).astype(np.float32)
    label = (generator.random(rows) < probability).astype(np.float32)
    return label, probability


def test_log_loss_by_hand_and_clipped():
    assert values.log_loss(np.array([1.0, 0.0]), np.array([0.5, 0.5])) == pytest.approx(math.log(2))
    assert values.log_loss(np.array([1.0]), np.array([0.0])) == pytest.approx(-math.log(1e-7))


def test_log_loss_equals_scikit_learn():
    label, probability = binary()
    expected = sk_log_loss(label, probability.astype(np.float64))
    assert values.log_loss(label, probability) == pytest.approx(expected, abs=1e-12)


def test_normalised_entropy_is_one_for_the_best_constant():
    label = np.array([1, 0, 0, 0], np.float32)
    assert values.normalised_entropy(label, np.full(4, 0.25)) == pytest.approx(1.0)
    assert values.normalised_entropy(label, np.array([0.9, 0.1, 0.1, 0.1])) < 1.0
    assert math.isnan(values.normalised_entropy(np.ones(3), np.full(3, 0.5)))


def test_errors_equal_scikit_learn_and_leave_out_missing_labels():
    generator = np.random.default_rng(1)
    label, prediction = generator.normal(size=50), generator.normal(size=50)
    assert values.rmse(label, prediction) == pytest.approx(math.sqrt(mean_squared_error(label, prediction)))
    assert values.mae(label, prediction) == pytest.approx(mean_absolute_error(label, prediction))
    assert values.rmse(np.array([3.0, NAN]), np.array([1.0, 100.0])) == 2.0
    assert values.mae(np.array([3.0, NAN]), np.array([1.0, 100.0])) == 2.0


@pytest.mark.parametrize("name", ["log_loss", "normalised_entropy", "rmse", "mae", "calibration"])
def test_what_is_summed_at_once_does_not_matter(name, monkeypatch):
    label, probability = binary()
    label[::5] = NAN
    whole, bins = getattr(values, name)(label, probability), values.reliability(label, probability)
    monkeypatch.setattr(values, "_BLOCK", 7)
    assert getattr(values, name)(label, probability) == pytest.approx(whole, abs=1e-12)
    for found, wanted in zip(vars(values.reliability(label, probability)).values(), vars(bins).values(), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


def test_calibration_is_predicted_over_observed():
    assert values.calibration(np.array([1, 0, 1, NAN]), np.array([0.5, 0.5, 0.5, 9.0])) == 0.75
    assert math.isnan(values.calibration(np.zeros(2), np.ones(2)))


@pytest.mark.parametrize("name", ["log_loss", "normalised_entropy", "rmse", "mae", "calibration"])
def test_empty_input_is_nan(name):
    assert math.isnan(getattr(values, name)(np.zeros(0), np.zeros(0)))


def test_reliability_bins_by_hand():
    label = np.array([0, 0, 1, 1, 1, 0], np.float32)
    prediction = np.array([0.1, 0.1, 0.5, 0.5, 0.9, 0.9])
    curve = values.reliability(label, prediction, bins=3)
    assert curve.prediction.tolist() == pytest.approx([0.1, 0.5, 0.9])
    assert curve.label.tolist() == pytest.approx([0.0, 1.0, 0.5])
    assert curve.count.tolist() == [2, 2, 2]
    assert curve.error == pytest.approx((0.1 + 0.5 + 0.4) / 3)


def test_equal_predictions_share_a_bin_and_bins_hold_every_target():
    curve = values.reliability(np.array([1, 0, 0, 0], np.float32), np.full(4, 0.25), bins=10)
    assert curve.count.tolist() == [4]
    assert curve.error == 0.0
    label, probability = binary(rows=1000)
    curve = values.reliability(label, probability, bins=10)
    assert curve.count.tolist() == [100] * 10
    assert np.all(np.diff(curve.prediction) > 0)
    assert math.isnan(values.reliability(np.zeros(0), np.zeros(0)).error)
