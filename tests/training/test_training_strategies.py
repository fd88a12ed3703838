"""Every strategy on a problem whose right answer is known."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from pneumoscope.errors import InputError
from pneumoscope.models.unet import UNet, UNetConfig
from pneumoscope.training.data import ArraySource, MixedSource
from pneumoscope.training.loop import TrainConfig, fit
from pneumoscope.training.strategies import (
    Distillation,
    PenalisedTask,
    Selector,
    WeightConsolidation,
    all_but_normalisation,
    best_mix,
    choose_store,
    equal_shares,
    features,
    fisher_diagonal,
    has_statistics,
    mix_weights,
    take_statistics,
)
from pneumoscope.training.tasks import SegmentationTask

CONFIG = TrainConfig(max_epochs=2, batch_size=4, learning_rate=1e-2, device="cpu", precision="fp32", seed=5)


def grey(value: float, n: int = 3) -> ArraySource:
    """Pictures of one grey value, half of each of them infiltrate."""
    images = np.full((n, 1, 4, 4), value, np.float32)
    targets = np.zeros((n, 1, 4, 4), np.uint8)
    targets[:, :, :2] = 1
    return ArraySource(images, targets, [f"{value:g}/{i}" for i in range(n)])


def pixel_net(weight: float = 0.0, bias: float = 0.0) -> nn.Conv2d:
    net = nn.Conv2d(1, 1, 1)
    with torch.no_grad():
        net.weight.fill_(weight)
        net.bias.fill_(bias)
    return net


# -- what is shown ---------------------------------------------------------------------------------------------


def test_an_epoch_holds_the_shares_asked_for():
    mixed = MixedSource([grey(0.0), grey(0.5, 9), grey(1.0, 1)], [0.5, 0.3, 0.2], 20)
    order = np.random.default_rng(0).permutation(len(mixed))
    drawn = mixed.batch(order, np.random.default_rng(1))
    values = drawn.x[:, 0, 0, 0].tolist()
    assert [values.count(v) for v in (0.0, 0.5, 1.0)] == [10, 6, 4]
    assert [name.split("/")[0] for name in drawn.names] == [f"{v:g}" for v in values]
    again = mixed.batch(order, np.random.default_rng(1))
    assert again.names == drawn.names
    assert len({n for n in drawn.names if n.startswith("0.5")}) > 1


def test_a_mixture_changes_its_content_with_all_that_shapes_it():
    a, b = grey(0.0), grey(1.0)
    prints = {
        MixedSource(parts, shares, n).content
        for parts, shares, n in (([a, b], [0.5, 0.5], 4), ([a, b], [0.25, 0.75], 4), ([a, b], [0.5, 0.5], 8),
                                 ([a, a], [0.5, 0.5], 4))
    }  # fmt: skip
    assert len(prints) == 4


@pytest.mark.parametrize(("shares", "n"), [([0.5], 4), ([0.5, 0.6], 4), ([1.5, -0.5], 4), ([0.5, 0.5], 1)])
def test_shares_that_make_no_epoch_are_refused(shares, n):
    with pytest.raises(InputError, match="shares"):
        MixedSource([grey(0.0), grey(1.0)], shares, n)


def test_equal_shares():
    assert equal_shares(0, None) == [1.0]
    assert equal_shares(1, None) == [0.5, 0.5]
    assert equal_shares(2, None) == pytest.approx([1 / 3] * 3)
    assert equal_shares(2, 0.2) == pytest.approx([0.8, 0.1, 0.1])


def test_the_store_takes_patients_in_turn_and_spreads_along_the_scan():
    patients = ["a"] * 9 + ["b"] * 2 + ["c"] * 5
    infected = [True] * 9 + [True] * 2 + [True, True, True, False, False]
    # three each would be 9; b has two, so a and c give one more each in turn: a 4, b 2, c 3 infected = 9 of them
    assert choose_store(patients, infected, 9).tolist() == [1, 3, 5, 7, 9, 10, 11, 12, 13]
    assert choose_store(patients, infected, 3).tolist() == [4, 9 + 1, 11 + 1]
    assert choose_store(patients, infected, 15).tolist()[-1] in (14, 15)  # healthy slices fill what is left
    assert choose_store(patients, infected, 99).tolist() == list(range(16))
    assert choose_store([], [], 4).tolist() == []


# -- what is asked ---------------------------------------------------------------------------------------------


def test_fisher_of_one_weight_by_hand():
    """logit = w x + b, mean cross-entropy: dL/dw = mean((p - y) x), dL/db = mean(p - y)."""
    net = pixel_net(weight=1.0, bias=0.5)
    source = grey(2.0, n=1)
    p = 1 / (1 + np.exp(-2.5))
    by_weight, by_bias = (p - 0.5) * 2.0, p - 0.5
    fisher = fisher_diagonal(net, source, np.arange(1))
    whole = by_weight**2 + by_bias**2
    assert fisher["weight"].item() == pytest.approx(by_weight**2 / whole, rel=1e-5)
    assert fisher["bias"].item() == pytest.approx(by_bias**2 / whole, rel=1e-5)


def test_fisher_adds_squares_of_slices_and_leaves_the_network_alone():
    net = UNet(UNetConfig(1, 1, (2, 4)))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.train()
    fisher = fisher_diagonal(net, grey(0.4, n=3), np.arange(3))
    assert sum(float(f.sum()) for f in fisher.values()) == pytest.approx(1.0, abs=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_consolidation_by_hand_and_where_it_pulls():
    net = pixel_net(weight=3.0, bias=1.0)
    anchor = {"weight": torch.full((1, 1, 1, 1), 1.0), "bias": torch.tensor([1.0])}
    fisher = {"weight": torch.full((1, 1, 1, 1), 0.25), "bias": torch.tensor([0.75])}
    term = WeightConsolidation(net, fisher, anchor, weight=8.0)
    batch = grey(0.0).batch(np.arange(2), None)
    value = term(net(batch.x), batch)
    assert value.item() == pytest.approx(8 / 2 * 0.25 * (3 - 1) ** 2)
    value.backward()
    assert net.weight.grad.item() == pytest.approx(8 * 0.25 * 2)
    assert net.bias.grad.item() == 0.0


def test_a_heavy_penalty_keeps_the_weight_and_none_lets_it_go(tmp_path):
    ends = {}
    for weight in (0.0, 1e4):
        net = pixel_net(weight=1.0)
        anchor = {name: p.detach().clone() for name, p in net.named_parameters()}
        fisher = {"weight": torch.ones(1, 1, 1, 1), "bias": torch.zeros(1)}
        task = PenalisedTask(SegmentationTask(), (WeightConsolidation(net, fisher, anchor, weight),), f"ewc {weight}")
        fit(net, task, grey(1.0, 8), grey(1.0, 2), dataclasses.replace(CONFIG, max_epochs=8), tmp_path / str(weight))
        ends[weight] = net.weight.item(), net.bias.item()
    assert abs(ends[1e4][0] - 1.0) < 0.02
    assert abs(ends[0.0][0] - 1.0) > 0.05
    assert ends[1e4][1] < -0.05  # the weight that did not matter learns instead


def test_distillation_is_the_softened_cross_entropy():
    teacher, net = pixel_net(weight=4.0), pixel_net(weight=2.0)
    batch = grey(1.0).batch(np.arange(1), None)
    output = net(batch.x)
    term = Distillation(teacher, weight=0.5, temperature=2.0)
    q, p = 1 / (1 + np.exp(-2.0)), 1 / (1 + np.exp(-1.0))
    by_hand = -(q * np.log(p) + (1 - q) * np.log(1 - p))
    value = term(output, batch)
    assert value.item() == pytest.approx(0.5 * 4 * by_hand, rel=1e-5)
    value.backward()
    # d/dw of T^2 BCE(w x / T, q) = T (p - q) x
    assert net.weight.grad.item() == pytest.approx(0.5 * 2 * (p - q), rel=1e-4)
    assert teacher.weight.grad is None


def test_distillation_asks_nothing_where_both_agree():
    teacher, net = pixel_net(weight=3.0), pixel_net(weight=3.0)
    batch = grey(1.0).batch(np.arange(1), None)
    Distillation(teacher, 1.0, 2.0)(net(batch.x), batch).backward()
    assert net.weight.grad.item() == pytest.approx(0.0, abs=1e-6)


def test_penalties_leave_validation_alone():
    plain = SegmentationTask()
    task = PenalisedTask(plain, (lambda output, batch: output.new_tensor(7.0),), "seven")
    batch = grey(1.0).batch(np.arange(2), None)
    logits = torch.zeros(2, 1, 4, 4)
    assert task.loss(logits, batch).item() == pytest.approx(plain.loss(logits, batch).item() + 7)
    with torch.no_grad():
        assert task.loss(logits, batch).item() == plain.loss(logits, batch).item()
    assert "seven" in repr(task)
    assert task.scores(task.counts(logits, batch)) == plain.scores(plain.counts(logits, batch))


def test_the_last_weights_are_kept_where_that_is_asked(tmp_path, toy):
    """Validation asks for the opposite, so the best epoch is the first; `keep` decides which of the two comes back."""
    train, val = toy
    opposite = ArraySource(val.images, 1 - val.targets, val.names)
    results = {}
    for keep in ("best", "last"):
        torch.manual_seed(0)
        model = UNet(UNetConfig(2, 2, (4, 8)))
        config = dataclasses.replace(CONFIG, max_epochs=4, keep=keep)
        results[keep] = fit(model, SegmentationTask(), train, opposite, config, tmp_path / keep)
    best, last = results["best"], results["last"]
    assert [row["val_loss"] for row in best.history] == [row["val_loss"] for row in last.history]
    assert best.best_value == min(row["val_loss"] for row in best.history)
    assert last.best_epoch == 4 != best.best_epoch
    assert last.best_value == last.history[-1]["val_loss"]


# -- what is kept ----------------------------------------------------------------------------------------------


def test_mixing_weights_is_linear_and_exact_at_the_ends():
    before = {"w": torch.tensor([0.0, 2.0]), "n": torch.tensor(3)}
    after = {"w": torch.tensor([1.0, -2.0]), "n": torch.tensor(9)}
    assert mix_weights(before, after, 0.25)["w"].tolist() == [0.25, 1.0]
    assert mix_weights(before, after, 0.0)["w"].tolist() == [0.0, 2.0]
    assert mix_weights(before, after, 1.0)["w"].tolist() == [1.0, -2.0]
    assert mix_weights(before, after, 0.25)["n"].item() == 9


def test_the_best_mix_is_found_and_loaded():
    net = pixel_net()
    states = [pixel_net(weight=w).state_dict() for w in (0.0, 1.0)]
    share, tried = best_mix(net, *states, (0.0, 0.5, 0.8, 1.0), lambda model: -abs(model.weight.item() - 0.45))
    assert share == 0.5
    assert net.weight.item() == pytest.approx(0.5)
    assert tried[1.0] == pytest.approx(-0.55)
    assert best_mix(net, *states, (0.0, 0.5, 1.0), lambda model: 1.0)[0] == 1.0  # ties: what was trained


def test_statistics_are_those_of_the_pictures():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))
    weight = model[1].weight.clone()
    x = torch.rand(32, 2, 4, 4) * torch.tensor([1.0, 5.0]).view(1, 2, 1, 1)
    take_statistics(model, x, batch_size=16)
    assert torch.allclose(model[0].running_mean, x.mean(dim=(0, 2, 3)), atol=1e-5)
    by_batch = torch.stack([part.var(dim=(0, 2, 3)) for part in x.split(16)]).mean(0)
    assert torch.allclose(model[0].running_var, by_batch, atol=1e-4)
    assert torch.equal(model[1].weight, weight)
    assert model[0].momentum == 0.1
    assert not any(module.training for module in model.modules())


def test_statistics_undo_another_brightness():
    """A network shown brighter pictures answers as before once it has their statistics."""
    torch.manual_seed(0)
    model = UNet(UNetConfig(1, 1, (4, 8))).eval()
    x = torch.rand(16, 1, 16, 16)
    take_statistics(model, x)
    right = model(x)
    other = x * 4
    wrong = model(other)
    take_statistics(model, other)
    assert (model(other) - right).abs().mean() < 0.01 * (wrong - right).abs().mean()


def test_only_the_normalisation_moves(tmp_path, toy):
    torch.manual_seed(0)
    model = UNet(UNetConfig(2, 2, (4, 8)))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    frozen = all_but_normalisation(model)
    fit(model, SegmentationTask(), *toy, dataclasses.replace(CONFIG, frozen=frozen), tmp_path)
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {k for k in before if k.rsplit(".", 1)[0] in norms}
    assert has_statistics(model)
    assert not has_statistics(UNet(UNetConfig(1, 1, (2, 4), norm="instance")))


def looks(site, n, seed):
    rng = np.random.default_rng([site, seed])
    level, grain = {1: (90, 5), 2: (120, 5), 3: (90, 40)}[site]
    return rng.normal(level, grain, (n, 2, 16, 16)).clip(0, 255).astype(np.uint8)


def test_the_selector_tells_sites_by_light_and_grain():
    selector = Selector.fit({site: looks(site, 25, 0) for site in (1, 2, 3)})
    for site in (1, 2, 3):
        assert [selector.choose(looks(site, n, 5 + n)) for n in (1, 3, 10)] == [site] * 3
    again = Selector.from_dict(selector.as_dict())
    assert np.array_equal(again.distances(looks(2, 4, 1)), selector.distances(looks(2, 4, 1)))
    assert features(looks(1, 0, 0)).shape == (0, 12)
    with pytest.raises(InputError, match=r"none of \[2\]"):
        Selector.fit({1: looks(1, 3, 0), 2: looks(2, 0, 0)})


def test_a_single_slice_is_enough_to_know_a_site():
    selector = Selector.fit({1: looks(1, 1, 0), 2: looks(2, 1, 0)})
    assert selector.choose(looks(2, 2, 9)) == 2
