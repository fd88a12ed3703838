"""The classification task: loss against torch's own, counts against a whole confusion, the loop on stripes."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from pneumoscope.errors import InputError
from pneumoscope.metrics.classification import score_decisions
from pneumoscope.training.data import ArraySource, Batch
from pneumoscope.training.loop import TrainConfig, fit
from pneumoscope.training.tasks import ClassificationTask, PictureSource

TASK = ClassificationTask(("normal", "bacterial", "covid19"))


def batch(y) -> Batch:
    y = torch.as_tensor(y, dtype=torch.float32)
    return Batch(torch.zeros(len(y), 1, 4, 4), y, tuple(f"p{i}" for i in range(len(y))))


def test_loss_is_torchs_cross_entropy_for_numbers_and_for_shares():
    torch.manual_seed(0)
    logits, truth = torch.randn(7, 3), torch.tensor([0, 2, 1, 1, 0, 2, 2])
    expected = nn.functional.cross_entropy(logits, truth)
    assert torch.allclose(TASK.loss(logits, batch(truth)), expected)
    assert torch.allclose(TASK.loss(logits, batch(truth[:, None])), expected)
    assert torch.allclose(TASK.loss(logits, batch(nn.functional.one_hot(truth, 3))), expected)
    by_hand = -math.log(math.exp(2) / (math.exp(2) + 1 + 1))
    assert TASK.loss(torch.tensor([[2.0, 0, 0]]), batch([0])).item() == pytest.approx(by_hand)


def test_rows_that_state_nothing_cost_nothing():
    logits = torch.randn(4, 3)
    some = TASK.loss(logits, batch([0, -1, 2, -1]))
    assert torch.allclose(some, TASK.loss(logits[[0, 2]], batch([0, 2])))
    assert TASK.loss(logits, batch([-1, -1, -1, -1])).item() == 0.0
    assert TASK.counts(logits, batch([-1, -1, -1, -1])).sum() == 0
    assert math.isnan(TASK.scores(torch.zeros(9))["accuracy"])


def test_counts_add_up_to_the_scores_of_all():
    rng = np.random.default_rng(0)
    truth, logits = rng.integers(0, 3, 40), torch.from_numpy(rng.normal(size=(40, 3)))
    total = sum(TASK.counts(logits[i : i + 7], batch(truth[i : i + 7])) for i in range(0, 40, 7))
    whole = score_decisions(truth, logits.argmax(1).numpy(), TASK.classes)
    assert TASK.scores(total) == {"accuracy": whole.accuracy, "f1": whole.f1}


@pytest.mark.parametrize("bad", [(), ("one",), ("a", "a")])
def test_refuses_what_is_no_classification(bad):
    with pytest.raises(InputError):
        ClassificationTask(bad)


def test_refuses_outputs_and_classes_that_do_not_fit():
    with pytest.raises(InputError, match="logits"):
        TASK.loss(torch.zeros(2, 4), batch([0, 1]))
    with pytest.raises(InputError, match="class 3"):
        TASK.loss(torch.zeros(2, 3), batch([0, 3]))


def stripes(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The class is where a bright stripe lies: top, middle, bottom."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    pictures = rng.integers(0, 60, (n, 12, 12)).astype(np.uint8)
    for picture, label in zip(pictures, labels, strict=True):
        picture[4 * label + 1 : 4 * label + 3] += 150
    return pictures, labels


def test_the_loop_learns_stripes_and_kept_rows_only(tmp_path):
    pictures, labels = stripes(60, 0)
    np.save(tmp_path / "p.npy", pictures)
    mapped = np.load(tmp_path / "p.npy", mmap_mode="r")
    rows = np.random.default_rng(1).permutation(60)
    names = np.array([f"p{i}" for i in range(60)])
    train = PictureSource(mapped, rows[:45], labels[rows[:45]], list(names[rows[:45]]), "x")
    val = PictureSource(mapped, rows[45:], labels[rows[45:]], list(names[rows[45:]]), "x")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3))
    config = TrainConfig(max_epochs=8, batch_size=9, learning_rate=0.01, device="cpu", precision="fp32")
    result = fit(model, TASK, train, val, config, tmp_path / "run")
    assert result.history[-1]["val_accuracy"] > 0.9
    assert {"val_accuracy", "val_f1"} <= set(result.history[0])


def test_a_source_gives_what_an_array_would_and_notices_other_data():
    pictures, labels = stripes(9, 0)
    rows = np.array([4, 2, 2, 8])
    names = ["e", "c", "c again", "i"]
    source = PictureSource(pictures, rows, labels[rows], names, "made")
    array = ArraySource(pictures[rows][:, None], labels[rows], names)
    order = np.array([3, 0, 1])
    ours, theirs = source.batch(order, None), array.batch(order, None)
    assert torch.allclose(ours.x, theirs.x, atol=1e-7)
    assert torch.equal(ours.y, theirs.y)
    assert ours.names == theirs.names == ("i", "e", "c")
    same = PictureSource(pictures, rows, labels[rows], names, "made")
    assert source.content == same.content
    flipped = labels[rows].copy()
    flipped[[0, 1]] = flipped[[1, 0]]
    others = [
        PictureSource(pictures, rows, flipped, names, "made"),
        PictureSource(pictures, rows, labels[rows], names[::-1], "made"),
        PictureSource(pictures, rows, labels[rows], names, "equalised"),
    ]
    assert len({s.content for s in (source, *others)}) == (4 if flipped.tolist() != labels[rows].tolist() else 3)
    with pytest.raises(InputError, match="no picture"):
        PictureSource(pictures, rows[:0], labels[:0], [])
    with pytest.raises(InputError, match="differ in number"):
        PictureSource(pictures, rows, labels[:2], names)
