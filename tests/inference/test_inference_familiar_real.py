"""What is familiar, learnt and limited on real radiographs, and asked about other patients, CT, and turned pictures.

The network's features are left out (a constant stands for them): the question is whether a picture is a frontal chest.
"""

import numpy as np
import pytest

from fit_familiar import fit_familiar
from pneumoscope.datasets.radiographs import PictureRecipe, read_radiographs
from pneumoscope.io.formats.radiograph import read_radiograph

pytestmark = pytest.mark.real
RECIPE = PictureRecipe(side=64)


def no_features(squares):
    return np.random.default_rng(0).normal(0, 1e-6, (len(squares), 2))


def named(known, squares):
    """Share of pictures for which a class would be named."""
    scores = known.score(squares, no_features(squares))
    scores = type(scores)(scores.distance, scores.upright, scores.turn, np.zeros(len(squares)))
    return np.mean([not known.reason(scores, row)[0] for row in range(len(squares))])


@pytest.fixture(scope="module")
def parts(real_data):
    """Squares of train, val, test by patient, 240 children and all adults with COVID-19."""
    if not (real_data / "xray").is_dir():
        pytest.skip(f"no radiographs in {real_data}; they belong into its folder xray")
    rng = np.random.default_rng(1)
    cases = []
    for name, folder, most in (
        ("kermany", "kermany", 240),
        ("cohen", "cohen-covid", 999),
        ("hannover", "hannover-covid", 999),
    ):
        own = read_radiographs(name, real_data / "xray" / folder)
        cases += [own[int(i)] for i in rng.permutation(len(own))[:most]]
    patients = sorted({case.patient for case in cases})
    part = dict(zip(patients, rng.choice(["train", "val", "test"], len(patients), p=[0.5, 0.25, 0.25]), strict=True))
    return {
        name: np.stack([RECIPE.make(case.load().pixels) for case in cases if part[case.patient] == name])
        for name in ("train", "val", "test")
    }


@pytest.fixture(scope="module")
def known(parts):
    train, val = parts["train"], parts["val"]
    labels = np.zeros(len(train), int)
    return fit_familiar((train, no_features(train), labels), (val, no_features(val)))


def test_other_patients_of_the_same_sources_are_answered(known, parts):
    assert named(known, parts["test"]) > 0.85


def test_ct_slices_are_abstained_from(known, real_data):
    paths = sorted((real_data / "ct-slices").glob("*/*/ct/*.png"))[::12] + sorted(
        (real_data / "ct-slices").glob("medseg/ct/*")
    )
    slices = np.stack([RECIPE.make(read_radiograph(path).pixels) for path in paths])
    assert len(slices) > 100
    assert named(known, slices) == 0


@pytest.mark.parametrize("how", ["90", "180", "270", "flipped", "inverted"])
def test_radiographs_that_do_not_stand_upright_are_abstained_from(known, parts, how):
    test = parts["test"]
    made = {
        "90": np.rot90(test, 1, (1, 2)), "180": np.rot90(test, 2, (1, 2)), "270": np.rot90(test, 3, (1, 2)),
        "flipped": test[:, ::-1], "inverted": 255 - test,
    }[how]  # fmt: skip
    assert named(known, np.ascontiguousarray(made)) < 0.03
