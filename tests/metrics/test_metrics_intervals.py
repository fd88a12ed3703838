from __future__ import annotations

import math

import numpy as np
import pytest

from pneumoscope.errors import InputError
from pneumoscope.metrics.intervals import bootstrap_interval


def test_mean_is_over_values_and_ends_enclose_it(rng):
    values = {f"p{n}": rng.normal(0.7, 0.1, size=n + 1).tolist() for n in range(12)}
    interval = bootstrap_interval(values)
    assert interval.mean == pytest.approx(np.mean(np.concatenate(list(values.values()))))
    assert interval.low < interval.mean < interval.high
    assert (interval.n_patients, interval.n_values) == (12, 78)


def test_same_seed_same_interval_whatever_the_order(rng):
    values = {f"p{n}": rng.random(3).tolist() for n in range(9)}
    backwards = dict(reversed(values.items()))
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(backwards, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_patients_are_drawn_not_slices(rng):
    """Many like slices per patient must not make the interval narrow."""
    level = {f"p{n}": float(v) for n, v in enumerate(rng.random(6))}
    few = bootstrap_interval({p: [v] for p, v in level.items()})
    many = bootstrap_interval({p: [v] * 500 for p, v in level.items()})
    assert (many.low, many.high) == pytest.approx((few.low, few.high))


def test_close_to_the_normal_interval_for_many_patients(rng):
    values = rng.normal(size=400)
    interval = bootstrap_interval({str(n): [v] for n, v in enumerate(values)})
    half = 1.96 * values.std() / math.sqrt(values.size)
    assert (interval.low, interval.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.015)


def test_scipy_gives_the_same_percentile_interval(rng):
    from scipy.stats import bootstrap

    values = rng.random(40)
    ours = bootstrap_interval({str(n): [v] for n, v in enumerate(values)}, n=20000)
    theirs = bootstrap((values,), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(1))
    expected = (theirs.confidence_interval.low, theirs.confidence_interval.high)
    assert (ours.low, ours.high) == pytest.approx(expected, abs=0.004)


def test_level_widens_the_interval(rng):
    values = {str(n): [float(v)] for n, v in enumerate(rng.random(20))}
    narrow, wide = bootstrap_interval(values, level=0.5), bootstrap_interval(values, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_one_patient_has_a_mean_but_no_interval():
    interval = bootstrap_interval({"p": [0.5, 1.0], "without slices": []})
    assert interval.mean == 0.75
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert (interval.n_patients, interval.n_values) == (1, 2)


@pytest.mark.parametrize("nothing", [{}, {"p": []}])
def test_no_values_no_mean(nothing):
    interval = bootstrap_interval(nothing)
    assert math.isnan(interval.mean)
    assert interval.n_values == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused_by_patient(bad):
    with pytest.raises(InputError, match="'second'"):
        bootstrap_interval({"first": [0.1], "second": [0.2, bad]})


@pytest.mark.parametrize("wrong", [{"n": 0}, {"level": 0.0}, {"level": 1.0}])
def test_unusable_settings_are_refused(wrong):
    with pytest.raises(InputError, match="bootstrap needs"):
        bootstrap_interval({"p": [1.0]}, **wrong)


def test_blocks_do_not_change_the_result(rng, monkeypatch):
    values = {str(n): [float(v)] for n, v in enumerate(rng.random(20))}
    whole = bootstrap_interval(values, n=300)
    monkeypatch.setattr("pneumoscope.metrics.intervals._BLOCK", 1000)
    assert bootstrap_interval(values, n=300) == whole
