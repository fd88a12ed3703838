"""A picture that is shrunk while it is read gets nearly the answer of the whole one, and the refusals it deserves."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from xray_models import chest, make_model

from fit_familiar import fit_familiar
from pneumoscope.datasets.radiographs import PictureRecipe
from pneumoscope.errors import InputError
from pneumoscope.inference.radiographs import RadiographClassifier
from pneumoscope.io.formats.radiograph import read_radiograph

MOST_APART = 0.02
"""Of a probability."""


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return RadiographClassifier(make_model(tmp_path_factory.mktemp("xray") / "model"), device="cpu")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_answers_stay(classifier, tmp_path, rng, suffix):
    squares = []
    for number in range(12):
        grey = chest(rng, 700, spot=number % 2 == 1, columns=560)
        path = tmp_path / f"{number}.{suffix}"
        Image.fromarray(np.rint(grey * 255).astype(np.uint8)).save(path)
        small = read_radiograph(path, least_side=classifier.least_side)
        assert min(small.pixels.shape) < 200
        squares.append([classifier.square(read_radiograph(path)), classifier.square(small)])
    whole, small = (classifier.answer(np.stack(group)) for group in zip(*squares, strict=True))
    assert [a.prediction for a in whole] == [a.prediction for a in small]
    for one, other in zip(whole, small, strict=True):
        assert list(one.probability.values()) == pytest.approx(list(other.probability.values()), abs=MOST_APART)


@pytest.mark.parametrize(
    ("recipe", "least"),
    [
        (PictureRecipe(side=50), 100),
        (PictureRecipe(side=50, border=0.25), 200),
        (PictureRecipe(side=50, view="lung_box", lung_box=(0.1, 0.6, 0.0, 1.0)), 200),
    ],
)
def test_the_least_side_leaves_two_pixels_for_each_of_the_square(classifier, recipe, least):
    other = object.__new__(RadiographClassifier)
    other.recipe = recipe
    assert other.least_side == least


def test_no_source_passes_a_limit_more_often_than_asked_for(rng):
    recipe = PictureRecipe(side=32)
    train, many, few = (np.stack([recipe.make(chest(rng, 64)) for _ in range(n)]) for n in (60, 190, 12))
    few[:, :, :5] = 0  # another hospital's collimator
    features = [rng.normal(size=(len(s), 3)) for s in (train, many, few)]
    features[2] += 4
    lesson = train, features[0], np.zeros(60, int)
    val = np.concatenate([many, few]), np.concatenate(features[1:])
    plain = fit_familiar(lesson, val, refused=0.1)
    fair = fit_familiar(lesson, val, refused=0.1, sources=["a"] * 190 + ["b"] * 12)
    scores = fair.score(few, features[2])
    for name in ("distance", "features"):
        assert (getattr(scores, name) > getattr(plain.limits, name)).mean() > 0.5
        assert (getattr(scores, name) > getattr(fair.limits, name)).mean() <= 2 / 12
    with pytest.raises(InputError, match="one source per picture"):
        fit_familiar(lesson, val, sources=["a"])


def test_what_is_near_both_limits_is_cannot_say(rng):
    recipe = PictureRecipe(side=32)
    squares = np.stack([recipe.make(chest(rng, 64)) for _ in range(80)])
    features = rng.normal(size=(80, 3))
    known = fit_familiar((squares[:40], features[:40], np.zeros(40, int)), (squares[40:], features[40:]))
    scores = known.score(squares[40:41], features[40:41])
    limits = known.limits
    assert 0 < limits.both <= 2

    def said(distance, feature):
        near = replace(
            scores, distance=np.array([distance * limits.distance]), features=np.array([feature * limits.features]),
            upright=np.array([2 * limits.upright]),
        )  # fmt: skip
        return known.reason(near, 0)

    half = limits.both / 2
    assert said(0.9 * half, 0.9 * half) == ("", "")
    assert said(half + 0.01, half + 0.01)[0] == "cannot say"
    assert "together" in said(half + 0.01, half + 0.01)[1]
