from __future__ import annotations

import math

import numpy as np
import pytest

from pneumoscope.errors import InputError
from pneumoscope.metrics.intervals import bootstrap_interval, over_seeds_and_sets, paired_difference, seeds_and_patients


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


def test_a_paired_difference_by_hand():
    before = {"a": [0.1, 0.2], "b": [0.9]}
    after = {"a": [0.3, 0.4], "b": [1.0]}
    found = paired_difference(after, before)
    assert found.mean == pytest.approx((0.2 + 0.2 + 0.1) / 3)
    assert (found.n_patients, found.n_values) == (2, 3)
    assert 0.1 - 1e-9 <= found.low <= found.high <= 0.2 + 1e-9


def test_pairing_is_what_makes_a_small_steady_gain_certain():
    rng = np.random.default_rng(0)
    hard = rng.random(20)
    before = {f"p{k}": [v] for k, v in enumerate(hard)}
    after = {f"p{k}": [v + 0.05] for k, v in enumerate(hard)}
    found = paired_difference(after, before)
    assert found.low == pytest.approx(0.05)
    alone = bootstrap_interval(after)
    assert alone.low < np.mean(hard)  # unpaired, the two intervals overlap


def test_pairs_must_be_pairs():
    with pytest.raises(InputError, match="same patients"):
        paired_difference({"a": [1.0]}, {"b": [1.0]})
    with pytest.raises(InputError, match="as many values"):
        paired_difference({"a": [1.0]}, {"a": [1.0, 0.5]})
    assert math.isnan(paired_difference({}, {}).mean)
    assert math.isnan(paired_difference({"a": [1.0]}, {"a": [0.5]}).low)


def test_seeds_widen_the_interval():
    patients = {f"p{k}": [0.5 + 0.01 * k] for k in range(10)}
    shifted = [{p: [v[0] + gap] for p, v in patients.items()} for gap in (-0.2, 0.0, 0.2)]
    one, three = bootstrap_interval(patients), seeds_and_patients(shifted)
    assert three.mean == pytest.approx(one.mean)
    assert three.high - three.low > 3 * (one.high - one.low)
    assert (three.n_patients, three.n_values) == (10, 30)


def test_one_seed_is_the_plain_interval():
    values = {f"p{k}": [0.1 * k, 0.05 * k] for k in range(8)}
    one, two = bootstrap_interval(values, n=4000), seeds_and_patients([values, {}], n=4000)
    assert two.mean == pytest.approx(one.mean)
    assert (two.low, two.high) == pytest.approx((one.low, one.high), abs=0.02)


def test_seeds_with_other_patients_are_nested():
    found = seeds_and_patients([{"a": [0.0], "b": [1.0]}, {"c": [0.0], "d": [1.0]}])
    assert (found.mean, found.n_patients) == (0.5, 4)
    assert found.low < 0.5 < found.high
    assert math.isnan(seeds_and_patients([]).mean)
    assert math.isnan(seeds_and_patients([{"a": [1.0]}]).low)
    two = seeds_and_patients([{"a": [1.0]}, {"a": [0.5]}])  # one patient, two trainings: the trainings are drawn
    assert (two.low, two.high) == (0.5, 1.0)


def test_sets_count_alike_and_are_not_drawn():
    few, many = {"a": [0.2]}, {f"p{k}": [0.8] for k in range(9)}
    found = over_seeds_and_sets([[few, many]])
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert found.n_patients == 10
    assert over_seeds_and_sets([[few, {}]]).mean == 0.2  # a set without values is left out
    assert math.isnan(over_seeds_and_sets([[{}, {}]]).mean)
    with pytest.raises(InputError, match="for each set"):
        over_seeds_and_sets([[few], [few, many]])
