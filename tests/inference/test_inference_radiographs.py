"""Radiographs through a small network: answers, abstention, heat maps and the cards that must be refused."""

import json

import numpy as np
import pytest
from xray_models import CLASSES, SIDE, chest, chests, make_model, pooled, train

from fit_familiar import fit_familiar, write_familiar
from pneumoscope.datasets.radiographs import PictureRecipe
from pneumoscope.errors import Finding, InputError, ModelError
from pneumoscope.inference.out_of_distribution import FILE, read_familiar, shrunken
from pneumoscope.inference.radiographs import (
    METHODS,
    RadiographClassifier,
    classify_pictures,
    heat,
    on_picture,
    overlay,
    share_in_lung_box,
    with_findings_applied,
)
from pneumoscope.metrics.classification import softmax_at
from pneumoscope.models.cards import read_card, write_card
from pneumoscope.volume import Radiograph


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("xray") / "model")


@pytest.fixture(scope="module")
def classifier(model):
    return RadiographClassifier(model, device="cpu")


def test_classes_are_told_apart_at_the_cards_temperature(classifier, rng):
    squares, labels = chests(rng, 40, classifier.recipe)
    answers = classifier.answer(squares)
    named = [CLASSES.index(a.prediction) for a in answers if a.answered]
    assert len(named) >= 36
    assert named == [int(y) for y, a in zip(labels, answers, strict=True) if a.answered]
    logits, _ = classifier.raw(squares)
    np.testing.assert_allclose([list(a.probability.values()) for a in answers], softmax_at(logits, 1.5), rtol=1e-6)


def test_a_picture_says_the_same_alone_and_in_a_batch(classifier, rng):
    squares, _ = chests(rng, 35, classifier.recipe)
    together = classifier.answer(squares)
    for row in (0, 34):
        alone = classifier.answer(squares[row : row + 1])[0]
        assert alone.prediction == together[row].prediction
        assert list(alone.probability.values()) == pytest.approx(list(together[row].probability.values()), abs=1e-5)
    assert classifier.answer(squares[:0]) == []


@pytest.mark.parametrize("how", ["quarter", "half", "three quarters", "flipped", "inverted", "noise", "ramp", "disc"])
def test_what_is_no_upright_chest_gets_no_class(classifier, rng, how):
    squares, _ = chests(rng, 20, classifier.recipe)
    r, c = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    made = {
        "quarter": np.rot90(squares, 1, (1, 2)), "half": np.rot90(squares, 2, (1, 2)),
        "three quarters": np.rot90(squares, 3, (1, 2)), "flipped": squares[:, ::-1], "inverted": 255 - squares,
        "noise": rng.integers(0, 256, squares.shape), "ramp": np.broadcast_to(255 * c, squares.shape),
        "disc": np.broadcast_to(200.0 * (np.hypot(r - 0.5, c - 0.5) < 0.4), squares.shape),
    }[how]  # fmt: skip
    answers = classifier.answer(np.ascontiguousarray(made, np.uint8))
    assert [a.prediction for a in answers] == ["none of these"] * 20
    assert all(a.reason and not a.answered for a in answers)


def test_brightness_and_contrast_do_not_make_a_chest_strange(classifier, rng):
    squares, _ = chests(rng, 20, classifier.recipe)
    paler = np.rint(60 + 0.6 * squares.astype(float)).astype(np.uint8)
    np.testing.assert_allclose(shrunken(paler), shrunken(squares), atol=0.05)


def test_features_unlike_training_are_cannot_say(classifier, rng):
    squares, _ = chests(rng, 24, classifier.recipe)
    _, features = classifier.raw(squares)
    known = classifier.familiar
    assert [known.reason(known.score(squares, features), i)[0] for i in range(24)].count("") >= 20
    scores = known.score(squares, features + 50)
    verdict, reason = known.reason(scores, 0)
    assert verdict == "cannot say"
    assert "was trained on" in reason


def test_a_score_that_is_not_finite_is_not_familiar(classifier, rng):
    squares, _ = chests(rng, 1, classifier.recipe)
    known = classifier.familiar
    scores = known.score(squares, np.full((1, known.centres.shape[1]), np.nan))
    assert known.reason(scores, 0)[0] == "cannot say"


def test_an_even_answer_is_cannot_say(model, rng):
    undecided = RadiographClassifier(model, device="cpu")
    undecided.network.head.weight.data[:] = 0
    undecided.network.head.bias.data[:] = 0
    answers = undecided.answer(chests(rng, 6, undecided.recipe)[0])
    assert {a.prediction for a in answers} <= {"cannot say", "none of these"}
    assert any("more likely than not" in a.reason for a in answers)


def test_a_lateral_view_by_its_header_is_none_of_these(classifier, rng):
    picture = Radiograph(chest(rng, 64), findings=(Finding("IN-XRY-090", "is a lateral view by its header"),))
    answer = with_findings_applied(classifier.answer(classifier.square(picture)[None])[0], picture.findings)
    assert answer.prediction == "none of these"
    assert classify_pictures([picture], classifier.folder, device="cpu")[0] == answer
    assert classify_pictures([], classifier.folder, device="cpu") == []


def test_limits_refuse_about_the_share_asked_for_and_survive_the_disk(tmp_path, rng):
    recipe = PictureRecipe(side=SIDE)
    squares, labels = chests(rng, 60, recipe)
    others, _ = chests(rng, 100, recipe)
    net = train(squares, labels, steps=5)
    known = fit_familiar((squares, pooled(net, squares), labels), (others, pooled(net, others)), refused=0.05)
    scores = known.score(others, pooled(net, others))
    assert (scores.distance > known.limits.distance).sum() == 5
    assert (scores.features > known.limits.features).sum() == 5
    assert known.limits.upright >= 1
    back = read_familiar(tmp_path, json.loads(json.dumps(write_familiar(tmp_path, known))))
    again = back.score(others, pooled(net, others))
    np.testing.assert_array_equal(again.distance, scores.distance)
    assert back.limits == known.limits
    with pytest.raises(InputError, match="at least 20"):
        fit_familiar((squares[:5], pooled(net, squares[:5]), labels[:5]), (others, pooled(net, others)))


def test_the_distance_is_that_of_the_covariance_matrix(rng):
    """Probabilistic PCA against the plain Mahalanobis distance with its full covariance."""
    squares, labels = chests(rng, 60, PictureRecipe(side=SIDE))
    net = train(squares, labels, steps=2)
    known = fit_familiar((squares, pooled(net, squares), labels), (squares, pooled(net, squares)))
    axes, noise = known.axes.astype(float), float(known.noise[0])
    covariance = axes.T @ np.diag(known.spread - noise) @ axes + noise * np.eye(axes.shape[1])
    off = shrunken(squares).reshape(60, -1) - known.mean
    plain = np.einsum("nd,nd->n", off, np.linalg.solve(covariance, off.T).T) / off.shape[1]
    np.testing.assert_allclose(known.score(squares, pooled(net, squares)).distance, plain, rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_heat_lies_on_the_spot_also_on_an_awkward_picture(classifier, method):
    pixels = chest(np.random.default_rng(8), 90, spot=True, columns=131)
    square = classifier.recipe.make(pixels)
    map_ = heat(classifier, square, "bacterial", method)
    assert map_.shape == (SIDE, SIDE)
    assert map_.dtype == np.float32
    assert (map_.min(), map_.max()) == (pytest.approx(0, abs=0.2), 1.0)
    laid = on_picture(map_, classifier.recipe, (90, 131))
    row, column = np.unravel_index(laid.argmax(), laid.shape)
    assert abs(row / 90 - 0.55) < 0.2
    assert abs(column / 131 - 0.3) < 0.15


def test_grad_cam_is_the_class_activation_map(classifier, rng):
    """With averaging and one dense layer the gradient is the dense weight over the number of places."""
    import torch

    square = chests(rng, 2, classifier.recipe)[0][1]
    with torch.no_grad():
        maps = classifier.network.features(classifier.tensor(square[None]))[0].numpy()
    plain = np.clip(np.tensordot(classifier.network.head.weight[1].detach().numpy(), maps, axes=1), 0, None)
    enlarged = torch.nn.functional.interpolate(
        torch.from_numpy(plain)[None, None], size=(SIDE, SIDE), mode="bilinear", align_corners=False
    )[0, 0].numpy()
    np.testing.assert_allclose(heat(classifier, square, "bacterial"), enlarged / enlarged.max(), atol=1e-4)


def test_heat_depends_on_the_weights_and_the_class(classifier, model, rng):
    """The sanity check of Adebayo et al. 2018 (NeurIPS): another network must give another map."""
    square = chests(rng, 2, classifier.recipe)[0][1]
    own = heat(classifier, square, "bacterial")
    other = RadiographClassifier(model, device="cpu")
    for parameter in other.network.parameters():
        parameter.data = parameter.data[..., :].flip(0)
    assert np.abs(heat(other, square, "bacterial") - own).max() > 0.2
    assert np.abs(heat(classifier, square, "normal") - own).max() > 0.2
    with pytest.raises(InputError, match="viral"):
        heat(classifier, square, "viral")
    with pytest.raises(InputError, match="grad-cam or occlusion"):
        heat(classifier, square, "normal", "lime")


@pytest.mark.parametrize(
    "recipe",
    [
        PictureRecipe(side=64), PictureRecipe(side=64, fit="pad"), PictureRecipe(side=64, border=0.1),
        PictureRecipe(side=64, view="lung_box", border=0.05), PictureRecipe(side=64, view="lung_box", fit="pad"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(120, 200), (203, 97)])
def test_a_map_goes_back_to_where_the_picture_came_from(recipe, shape):
    pixels = np.zeros(shape, np.float32)
    row, column = round(0.6 * shape[0]), round(0.35 * shape[1])
    pixels[row - 5 : row + 6, column - 5 : column + 6] = 1
    back = on_picture(recipe.make(pixels).astype(np.float32) / 255, recipe, shape)
    assert back.shape == shape
    where = np.argwhere(back > 0.5 * back.max()).mean(axis=0)
    assert np.abs(where - (row, column)).max() <= max(shape) / 64 + 1


def test_what_the_recipe_cuts_away_has_no_heat():
    laid = on_picture(np.ones((64, 64), np.float32), PictureRecipe(side=64, border=0.1), (100, 50))
    assert laid[:10].max() == laid[90:].max() == laid[:, :5].max() == laid[:, 45:].max() == 0
    assert (laid[10:90, 5:45] == 1).all()


def test_the_share_in_the_lung_box():
    even = np.ones((100, 100))
    share, area = share_in_lung_box(even)
    assert share == pytest.approx(area)
    assert area == pytest.approx(0.7 * 0.84)
    corner = np.zeros((100, 100))
    corner[:5, :5] = 1
    assert share_in_lung_box(corner)[0] == 0
    corner[50, 50] = 25
    assert share_in_lung_box(corner)[0] == pytest.approx(0.5)
    assert share_in_lung_box(np.zeros((10, 10)))[0] is None


def test_an_overlay_leaves_cold_places_grey_and_bands_leave_no_seam(rng):
    pixels = rng.random((1100, 40)).astype(np.float32)
    drawn = overlay(pixels, np.zeros_like(pixels))
    np.testing.assert_array_equal(drawn, np.repeat(np.rint(pixels * 255).astype(np.uint8)[..., None], 3, axis=2))
    hot = overlay(np.full((1100, 40), 0.5, np.float32), np.full((1100, 40), 0.7, np.float32))
    assert len(np.unique(hot.reshape(-1, 3), axis=0)) == 1
    assert np.ptp(hot[0, 0].astype(int)) > 40


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": None}, "has no classes"), ({"classes": ["a", "b", "c"]}, "names 3"),
        ({"input": {}}, "input.recipe"), ({"input": {"recipe": {"side": 2}}}, "input.recipe"),
        ({"temperature": 0}, "temperature"), ({"temperature": "warm"}, "temperature"),
        ({"familiar": {"file": "../x", "sha256": ""}}, "x was changed"),
        ({"familiar": {"file": FILE, "sha256": "0" * 64}}, FILE),
    ],
)  # fmt: skip
def test_cards_that_cannot_be_right_are_refused(model, tmp_path, change, words):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    write_card(copy, read_card(copy) | change)
    with pytest.raises(ModelError, match=words):
        RadiographClassifier(copy, device="cpu")


def test_limits_that_lack_one_are_refused(model, tmp_path):
    card = json.loads((model / "card.json").read_text())
    del card["familiar"]["limits"]["upright"]
    with pytest.raises(ModelError, match="incomplete"):
        read_familiar(model, card["familiar"])


def test_a_model_for_ct_is_refused():
    with pytest.raises(ModelError, match="not a radiograph model"):
        RadiographClassifier("lungs", device="cpu")


def test_without_limits_a_class_is_named_and_said_to_be_unchecked(model, tmp_path, rng):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    card = read_card(copy)
    del card["familiar"]
    write_card(copy, card)
    answer = RadiographClassifier(copy, device="cpu").answer(rng.integers(0, 256, (1, SIDE, SIDE)).astype(np.uint8))[0]
    assert answer.prediction in CLASSES
    assert not answer.familiar
    assert answer.scores == {}


def test_folding_normalisation_changes_no_answer(rng):
    """Both architectures, with statistics as after training, against the network as it was trained."""
    import copy

    import torch

    from pneumoscope.inference.radiographs import _quickened
    from pneumoscope.models.classifiers import ChestCNN, ChestCNNConfig, ResNet50, ResNetConfig

    x = torch.from_numpy(rng.random((3, 1, 64, 64)).astype(np.float32))
    for net in (ChestCNN(ChestCNNConfig(features=(4, 8))), ResNet50(ResNetConfig(width=4))):
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
        net.eval()
        quick = _quickened(copy.deepcopy(net))
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in quick.modules())
        with torch.inference_mode():
            torch.testing.assert_close(quick(x), net(x), rtol=1e-3, atol=1e-4)
