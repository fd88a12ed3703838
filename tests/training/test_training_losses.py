import numpy as np
import pytest
import torch

from pneumoscope.errors import InputError
from pneumoscope.training.losses import LOSSES, cross_entropy, dice, make_loss, pooled_dice, tversky

CERTAIN = 30.0


def logits_of(mask: torch.Tensor) -> torch.Tensor:
    return (mask * 2 - 1) * CERTAIN


@pytest.fixture
def lesion() -> torch.Tensor:
    mask = torch.zeros(2, 1, 6, 8)
    mask[0, 0, 1:4, 2:5] = 1  # 9 pixels; the second slice is healthy
    return mask


@pytest.mark.parametrize("name", LOSSES)
def test_perfect_costs_nothing(name, lesion):
    assert make_loss(name)(logits_of(lesion), lesion).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_a_false_lesion_on_a_healthy_slice_costs_more_than_silence(name):
    healthy = torch.zeros(1, 1, 6, 8)
    loud, silent = make_loss(name)(torch.full_like(healthy, 5.0), healthy), make_loss(name)(logits_of(healthy), healthy)
    assert loud > silent + 0.5


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_stated_costs_exactly_nothing_and_has_a_gradient(name):
    logits = torch.randn(2, 1, 6, 8, requires_grad=True)
    loss = make_loss(name)(logits, torch.full((2, 1, 6, 8), -1.0))
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().sum() == 0


@pytest.mark.parametrize("name", LOSSES)
def test_pixels_not_stated_do_not_matter(name, lesion):
    target = lesion.clone()
    target[:, :, :, 6:] = -1
    logits = torch.randn(2, 1, 6, 8)
    other = logits.clone()
    other[:, :, :, 6:] = 99
    assert make_loss(name)(logits, target).item() == pytest.approx(make_loss(name)(other, target).item(), rel=1e-6)


def test_dice_by_hand(lesion):
    prediction = torch.zeros_like(lesion)
    prediction[0, 0, 1:4, 3:6] = 1  # 9 pixels, 6 shared
    prediction[1, 0, 0, 0:3] = 1  # 3 false pixels on the healthy slice
    first = 1 - (6 + 1) / (6 + 0.5 * 3 + 0.5 * 3 + 1)
    second = 1 - (0 + 1) / (0 + 0.5 * 3 + 0 + 1)
    assert dice(logits_of(prediction), lesion).item() == pytest.approx((first + second) / 2, abs=1e-6)
    assert pooled_dice(logits_of(prediction), lesion).item() == pytest.approx(1 - (12 + 1) / (12 + 9 + 1), abs=1e-6)


def test_tversky_weighs_the_two_errors(lesion):
    missed, invented = lesion.clone(), lesion.clone()
    missed[0, 0, 1, 2:5] = 0
    invented[0, 0, 5, 2:5] = 1
    assert tversky(logits_of(missed), lesion, 0.2, 0.8) > tversky(logits_of(invented), lesion, 0.2, 0.8)


def test_cross_entropy_is_the_mean_over_pixels_and_channels():
    probability = torch.tensor([0.9, 0.2]).view(1, 2, 1, 1)
    target = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    expected = -(np.log(0.9) + np.log(0.8)) / 2
    assert cross_entropy(torch.logit(probability), target).item() == pytest.approx(expected, abs=1e-6)


def test_dice_agrees_with_monai(lesion):
    from monai.losses import DiceLoss

    logits = torch.randn(2, 1, 6, 8, generator=torch.Generator().manual_seed(3))
    # MONAI adds its smoothing to 2 TP and to the sum of both areas: twice ours.
    reference = DiceLoss(sigmoid=True, smooth_nr=2.0, smooth_dr=2.0)(logits, lesion)
    assert dice(logits, lesion).item() == pytest.approx(reference.item(), abs=1e-6)


def test_unknown_loss_is_refused_with_the_known_names():
    with pytest.raises(InputError, match="known are cross_entropy"):
        make_loss("focal")
