import dataclasses
import hashlib
import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pneumoscope.errors import CheckpointError, InputError, NonFiniteLossError
from pneumoscope.models.unet import UNet, UNetConfig
from pneumoscope.training.augment import SliceAugment
from pneumoscope.training.checkpoint import LAST, PREVIOUS, load_checkpoint
from pneumoscope.training.data import ArraySource, Batch
from pneumoscope.training.loop import TrainConfig, cycle, fit, plateaus
from pneumoscope.training.tasks import SegmentationTask

CONFIG = TrainConfig(max_epochs=3, batch_size=4, learning_rate=1e-2, device="cpu", precision="fp32", seed=5)
TASK = SegmentationTask("dice_cross_entropy")


def net(seed: int = 0, dropout: float = 0.2) -> UNet:
    torch.manual_seed(seed)
    return UNet(UNetConfig(2, 2, (4, 8), dropout=dropout))


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Killed(Exception):
    pass


class KillAt:
    """A progress callback that stops the run after so many calls."""

    def __init__(self, call: int) -> None:
        self.left = call

    def __call__(self, what, done, total, note=""):
        self.left -= 1
        if self.left == 0:
            raise Killed


class Signalling:
    """A source that gets a signal while it makes its n-th batch."""

    def __init__(self, source, number, call):
        self.source, self.number, self.left = source, number, call

    def __len__(self):
        return len(self.source)

    @property
    def content(self):
        return self.source.content

    def batch(self, rows, rng):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(self.number)
        return self.source.batch(rows, rng)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("part", "call", "steps"), [(0, 1, 1), (0, 8, 3), (1, 1, 5)])
def test_a_signal_leaves_a_checkpoint_of_the_step_at_hand(toy, tmp_path, number, part, call, steps):
    """In the first step, in the second epoch, in the first validation."""

    def stop(*_):
        raise KeyboardInterrupt

    whole, config = net(), dataclasses.replace(CONFIG, schedule="cosine", ema=0.9)
    fit(whole, TASK, *toy, config, tmp_path / "a")
    sources = [Signalling(s, number, call) if i == part else s for i, s in enumerate(toy)]
    before = signal.signal(number, stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(net(), TASK, *sources, config, tmp_path / "b")
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)
    assert load_checkpoint(tmp_path / "b").state["state"]["step"] == steps
    fresh = net(seed=99)
    fit(fresh, TASK, *toy, config, tmp_path / "b", resume=True)
    assert same(weights(whole), weights(fresh))
    for name in ("history.csv", LAST):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_learns_the_toy_problem_and_keeps_the_best(toy, tmp_path):
    model = net()
    result = fit(model, TASK, *toy, dataclasses.replace(CONFIG, max_epochs=12, monitor="val_dice"), tmp_path)
    assert result.best_value > 0.9
    assert result.best_value == max(row["val_dice"] for row in result.history)
    assert not model.training
    rows = (tmp_path / "history.csv").read_text().splitlines()
    assert rows[0].split(",") == ["epoch", "learning_rate", "train_loss", "val_loss", "val_dice"]
    assert len(rows) == 13


PLATEAU = {"max_epochs": 7, "learning_rate": 3.0, "schedule": "plateau", "plateau_epochs": 1}
"""A rate that is far too high: the validation loss stands still at once."""


@pytest.mark.parametrize(
    ("changes", "kills"),
    [
        ({"schedule": "cosine", "warmup_steps": 3}, (1, 3, 6, 9, 14)),
        ({"schedule": "cosine", "warmup_steps": 3, "ema": 0.9}, (1, 3, 6, 9, 14)),
        (PLATEAU, (12, 17, 33)),
        ({"schedule": "cyclic"}, (4, 13)),
    ],
    ids=["cosine", "ema", "plateau", "cyclic"],
)
def test_stopped_and_resumed_ends_with_the_same_bits(toy, tmp_path, changes, kills):
    train = dataclasses.replace(toy[0], augment=SliceAugment(drop_channel=(1, 0.3)))
    config = dataclasses.replace(CONFIG, checkpoint_every_steps=1, **changes)
    whole = net()
    undisturbed = fit(whole, TASK, train, toy[1], config, tmp_path / "a")
    for kill_at in kills:
        out, fresh = tmp_path / str(kill_at), net(seed=99)  # a new process knows nothing of the old weights
        with pytest.raises(Killed):
            fit(net(), TASK, train, toy[1], config, out, progress=KillAt(kill_at))
        resumed = fit(fresh, TASK, train, toy[1], config, out, resume=True)
        assert resumed.history == undisturbed.history
        assert same(weights(whole), weights(fresh))
        for name in ("history.csv", LAST):
            assert (tmp_path / "a" / name).read_bytes() == (out / name).read_bytes()


@pytest.mark.parametrize(
    ("losses", "drops"),
    [
        ([], 0),
        ([1.0], 0),
        ([1.0, 1.0], 0),  # equal is not better
        ([1.0, 1.0, 1.1], 1),
        ([1.0, 1.0, 1.1, 1.0, 1.0], 2),
        ([1.0, 1.1, 0.9, 0.95, 0.8], 0),  # each time before the second epoch without a better one
        ([1.0, 1.1, 1.1, 1.0, 0.9, 1.0, 1.0], 2),
        ([math.nan, math.nan], 1),
    ],
)
def test_plateaus_by_hand(losses, drops):
    assert plateaus(losses, 2) == drops


def test_plateaus_are_those_of_torch():
    """Torch reduces when more than `patience` epochs were bad, Keras when `patience` were: one off."""
    rng = np.random.default_rng(0)
    for epochs in (1, 2, 5):
        losses = rng.random(60).tolist()
        optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        other = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, patience=epochs - 1, threshold=0, eps=0)
        for n, loss in enumerate(losses, start=1):
            other.step(loss)
            drops = plateaus(losses[:n], epochs)
            assert optimiser.param_groups[0]["lr"] == pytest.approx(0.1**drops, rel=1e-9)


def test_plateau_drops_the_rate(toy, tmp_path):
    history = fit(net(), TASK, *toy, dataclasses.replace(CONFIG, **PLATEAU), tmp_path).history
    rates, losses = ([row[name] for row in history] for name in ("learning_rate", "val_loss"))
    assert rates == [3.0 * 0.1 ** plateaus(losses[:n], 1) for n in range(7)]
    assert rates[-1] < rates[0], "the rate never dropped: the test shows nothing"


def test_plateau_settings_count_for_a_resume_only_where_they_are_used(toy, tmp_path):
    one = dataclasses.replace(CONFIG, max_epochs=1)
    fit(net(), TASK, *toy, one, tmp_path / "constant")
    fit(net(), TASK, *toy, dataclasses.replace(one, plateau_epochs=9), tmp_path / "constant", resume=True)
    fit(net(), TASK, *toy, dataclasses.replace(one, schedule="plateau"), tmp_path / "plateau")
    other = dataclasses.replace(one, schedule="plateau", plateau_epochs=9)
    with pytest.raises(CheckpointError, match="plateau_epochs was 5, is 9"):
        fit(net(), TASK, *toy, other, tmp_path / "plateau", resume=True)


def test_plateaus_rest_and_ask_for_a_least_improvement():
    """Keras: an epoch of rest after a drop, and what is hardly lower is not lower."""
    assert plateaus([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 2) == 3
    assert plateaus([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 2, rest=2) == 2
    assert plateaus([1.0, 0.99, 0.98, 0.5], 2, least=0.1) == 1


def test_the_plateau_may_be_of_the_training_loss_and_has_a_floor(toy, tmp_path):
    config = dataclasses.replace(CONFIG, max_epochs=6, learning_rate=3.0, schedule="plateau", plateau_epochs=1)
    config = dataclasses.replace(config, plateau_of="train_loss", monitor="train_loss", plateau_least=9.0)
    config = dataclasses.replace(config, plateau_floor=0.5)
    result = fit(net(), TASK, *toy, config, tmp_path)
    losses = [row["train_loss"] for row in result.history]
    rates = [row["learning_rate"] for row in result.history]
    assert rates == [max(0.5, 3.0 * 0.1 ** plateaus(losses[:n], 1, 9.0)) for n in range(6)]
    assert rates[-1] == 0.5, "the rate never dropped: the test shows nothing"
    assert result.best_value == min(losses)


def test_one_cycle_rises_over_a_quarter_and_ends_near_nothing(toy, tmp_path):
    history = fit(net(), TASK, *toy, dataclasses.replace(CONFIG, schedule="cyclic"), tmp_path).history
    assert history[-1]["learning_rate"] < CONFIG.learning_rate / 10
    rates = [cycle(n / 1000) for n in range(1000)]
    assert rates[0] == pytest.approx(1 / 25)
    assert rates[250] == pytest.approx(1.0)
    assert rates[-1] < 1e-4
    assert np.all(np.diff(rates[:251]) > 0)
    assert np.all(np.diff(rates[250:]) < 0)


def test_a_finished_run_is_not_trained_on(toy, tmp_path):
    first, again = net(), net(seed=1)
    fit(first, TASK, *toy, CONFIG, tmp_path)
    before = (tmp_path / LAST).read_bytes()
    result = fit(again, TASK, *toy, CONFIG, tmp_path, resume=True)
    assert result.epochs_run == 3
    assert same(weights(first), weights(again))
    assert (tmp_path / LAST).read_bytes() == before


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "foreign"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_used(toy, tmp_path, damage):
    reference = net()
    expected = fit(reference, TASK, *toy, CONFIG, tmp_path / "a")
    with pytest.raises(Killed):
        fit(net(), TASK, *toy, CONFIG, tmp_path / "b", progress=KillAt(13))  # in the third epoch
    last = tmp_path / "b" / LAST
    data = bytearray(last.read_bytes())
    if damage == "truncate":
        data = data[: len(data) // 2]
    elif damage == "flip":
        data[len(data) // 2] ^= 1
    elif damage == "empty":
        data = bytearray()
    else:
        data = bytearray(b"something else entirely")
    last.write_bytes(data)
    model = net(seed=3)
    result = fit(model, TASK, *toy, CONFIG, tmp_path / "b", resume=True)
    assert "last.ckpt is damaged" in result.notes[0]
    assert "previous.ckpt" in result.notes[0]
    assert result.history == expected.history
    assert same(weights(model), weights(reference))


def test_every_flipped_byte_is_noticed(toy, tmp_path):
    fit(net(), TASK, *toy, dataclasses.replace(CONFIG, max_epochs=1), tmp_path)
    path = tmp_path / LAST
    (tmp_path / PREVIOUS).unlink(missing_ok=True)
    whole = path.read_bytes()
    for position in np.linspace(0, len(whole) - 1, 60).astype(int):
        bad = bytearray(whole)
        bad[position] ^= 0x10
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match="damaged"):
            load_checkpoint(tmp_path)


def sealed(payload: bytes) -> bytes:
    return b"PNEUMOSCOPE-CKPT 1\n" + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload


@pytest.mark.parametrize("damage", ["tensors", "cut", "deep", "list", "no JSON", "name", "pairs"])
def test_content_that_is_wrong_under_a_right_sum_falls_back(toy, tmp_path, damage):
    fit(net(), TASK, *toy, CONFIG, tmp_path)
    before = load_checkpoint(tmp_path).state
    (tmp_path / PREVIOUS).write_bytes((tmp_path / LAST).read_bytes())
    plain, _, tensors = (tmp_path / LAST).read_bytes().split(b"\n", 2)[2].partition(b"\n")
    payloads = {
        "tensors": plain + b"\n" + b"\xff" * 8 + tensors[8:], "cut": plain + b"\n" + tensors[:-5],
        "deep": b"[" * 100_000 + b"\n" + tensors, "list": b"[1, 2]\n" + tensors,
        "no JSON": plain[:-3] + b"\n" + tensors, "name": plain.replace(b'"000000"', b'["x"]', 1) + b"\n" + tensors,
        "pairs": b'{"pairs": 7}\n' + tensors,
    }  # fmt: skip
    (tmp_path / LAST).write_bytes(sealed(payloads[damage]))
    kept = load_checkpoint(tmp_path)
    assert kept.note.startswith("last.ckpt is damaged")
    assert kept.note.endswith("went back to previous.ckpt")
    assert same(kept.state["model"], before["model"])
    (tmp_path / PREVIOUS).unlink()
    with pytest.raises(CheckpointError, match=r"last\.ckpt is damaged \(its sum is right|it holds no state"):
        load_checkpoint(tmp_path)


def test_only_damaged_checkpoints_never_begin_a_new_run(toy, tmp_path):
    fit(net(), TASK, *toy, CONFIG, tmp_path)
    for name in (LAST, PREVIOUS):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"last.ckpt is damaged .* and previous.ckpt is damaged"):
        fit(net(), TASK, *toy, CONFIG, tmp_path, resume=True)


def test_resume_before_the_first_checkpoint_says_so(toy, tmp_path):
    result = fit(net(), TASK, *toy, dataclasses.replace(CONFIG, max_epochs=1), tmp_path, resume=True)
    assert "started at the first epoch" in result.notes[0]


def test_resume_with_other_settings_or_data_is_refused(toy, tmp_path):
    fit(net(), TASK, *toy, CONFIG, tmp_path)
    with pytest.raises(CheckpointError, match=r"learning_rate was 0\.01, is 0\.02"):
        fit(net(), TASK, *toy, dataclasses.replace(CONFIG, learning_rate=0.02), tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="train was"):
        fit(net(), TASK, toy[1], toy[1], CONFIG, tmp_path, resume=True)


def test_a_loss_that_is_not_finite_stops_before_the_weights_move(toy, tmp_path):
    images = toy[0].images.astype(np.float32)
    images[7] = np.nan
    train = ArraySource(images, toy[0].targets, toy[0].names)
    model = net()
    before = weights(model)
    config = dataclasses.replace(CONFIG, batch_size=18)  # one step, so nothing may have moved
    with pytest.raises(NonFiniteLossError, match=r"epoch 1, step 1.*case"):
        fit(model, TASK, train, toy[1], config, tmp_path)
    learned = {k: v for k, v in weights(model).items() if "running" not in k and "tracked" not in k}
    assert all(torch.equal(v, before[k]) for k, v in learned.items())


class Steep(torch.autograd.Function):
    """The identity, whose gradient is not finite: what a broken kernel looks like from outside."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
@pytest.mark.parametrize(("precision", "advice"), [("fp32", "lower the learning rate"), ("bf16", "--precision fp32")])
def test_a_gradient_that_is_not_finite_stops_before_the_weights_move(toy, tmp_path, precision, advice, clip_norm):
    class Broken(UNet):
        def forward(self, x):
            out = super().forward(x)
            return out if not self.training else Steep.apply(out) if self.calls else self.count(out)

        calls = 0

        def count(self, out):
            self.calls += 1
            return out

    torch.manual_seed(0)
    model = Broken(UNetConfig(2, 2, (4, 8)))
    config = dataclasses.replace(CONFIG, batch_size=9, precision=precision, clip_norm=clip_norm)
    config = dataclasses.replace(config, checkpoint_every_steps=1)
    with pytest.raises(NonFiniteLossError, match=rf"gradient of head\.(weight|bias).* epoch 1, step 2.*{advice}.*case"):
        fit(model, TASK, *toy, config, tmp_path)
    kept = load_checkpoint(tmp_path).state["model"]  # of step 1
    learned = {k: v for k, v in weights(model).items() if "running" not in k and "tracked" not in k}
    assert all(torch.equal(v, kept[k]) for k, v in learned.items())


def test_a_gradient_of_another_size_is_no_reason_to_stop(toy, tmp_path):
    class Large(SegmentationTask):
        def loss(self, output, batch):
            return super().loss(output, batch) * 1e30  # squares of it leave the finite numbers, it does not

    fit(net(), Large("dice_cross_entropy"), *toy, dataclasses.replace(CONFIG, max_epochs=1), tmp_path)


def test_best_is_a_copy_that_later_training_does_not_change(toy, tmp_path):
    model = net()
    fit(model, TASK, *toy, dataclasses.replace(CONFIG, max_epochs=4, learning_rate=0.3), tmp_path)
    state = load_checkpoint(tmp_path).state
    best = state["state"]["best_epoch"]
    assert same(weights(model), state["best"])
    if best < 4:
        assert not same(state["model"], state["best"])


def test_early_stopping_counts_epochs_without_gain(toy, tmp_path):
    class Flat(SegmentationTask):
        def loss(self, output, batch):
            return output.sum() * 0 + 1.0

    result = fit(net(), Flat(), *toy, dataclasses.replace(CONFIG, max_epochs=50, patience=4), tmp_path)
    assert result.stopped_by == "patience"
    assert result.best_epoch == 1
    assert result.epochs_run == 5


def test_frozen_parts_keep_weights_and_statistics(toy, tmp_path):
    model = net()
    before = weights(model)
    fit(model, TASK, *toy, dataclasses.replace(CONFIG, frozen=("down.0",)), tmp_path)
    after = weights(model)
    assert all(torch.equal(before[k], after[k]) for k in before if k.startswith("down.0"))
    assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith("down.1"))


def test_max_minutes_stops_after_an_epoch(toy, tmp_path):
    result = fit(net(), TASK, *toy, dataclasses.replace(CONFIG, max_epochs=500, max_minutes=1e-6), tmp_path)
    assert (result.stopped_by, result.epochs_run) == ("max_minutes", 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_epochs", 0), ("batch_size", 0), ("learning_rate", 0.0), ("optimiser", "sgd"), ("schedule", "step"),
        ("monitor", "loss"), ("plateau_epochs", 0), ("plateau_factor", 1.0), ("plateau_of", "dice"),
    ],
)  # fmt: skip
def test_nonsense_settings_are_refused(field, value):
    with pytest.raises(InputError):
        dataclasses.replace(CONFIG, **{field: value})


def test_an_unmeasured_monitor_is_refused(toy, tmp_path):
    with pytest.raises(InputError, match="known are val_loss, val_dice"):
        fit(net(), TASK, *toy, dataclasses.replace(CONFIG, monitor="val_f2"), tmp_path)


def test_an_empty_set_is_refused():
    with pytest.raises(InputError, match="empty"):
        ArraySource(np.empty((0, 2, 4, 4), np.uint8), np.empty((0, 2, 4, 4), np.uint8), [])


def test_augmentation_moves_image_and_target_together(toy):
    augment = SliceAugment(noise=0, blur=0, gamma=(1, 1), contrast=(1, 1), brightness=0)
    drawn = toy[0].batch(np.arange(18), None)
    moved = augment(drawn, np.random.default_rng(0))
    assert set(moved.y.unique().tolist()) <= {0.0, 1.0}
    bright = moved.x[:, 0] > 0.55
    inside = moved.y[:, 0] > 0.5
    overlap = 2 * (bright & inside).sum() / (bright.sum() + inside.sum())
    assert overlap > 0.85
    again = augment(drawn, np.random.default_rng(0))
    assert torch.equal(moved.x, again.x)


def test_task_scores_count_pooled_pixels():
    truth = torch.zeros(1, 2, 2, 3)
    truth[0, 0, 0] = 1
    logits = torch.full((1, 2, 2, 3), -9.0)
    logits[0, 0, :, 0] = 9.0
    counts = TASK.counts(logits, Batch(torch.zeros(1, 2, 2, 3), truth, ("x",)))
    assert counts.tolist() == [1, 1, 2]
    assert TASK.scores(counts)["dice"] == pytest.approx(2 / 5)
    assert TASK.scores(torch.zeros(3))["dice"] == 1.0


KILL_SCRIPT = """
import sys, torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from conftest import blobs
from test_training_loop import CONFIG, TASK, net
from dataclasses import replace
from pneumoscope.models.weights import save_model
from pneumoscope.training.loop import fit
model = net()
config = replace(CONFIG, max_epochs=40, checkpoint_every_steps=1)
fit(model, TASK, blobs(18, 0), blobs(7, 1), config, sys.argv[2], resume=True)
save_model(sys.argv[2], model, {"task": "infiltrate"})
"""


@pytest.mark.slow
def test_killed_twenty_times_ends_with_the_same_files(tmp_path, start):
    """SIGKILL at random moments, each followed by a resume in a new process."""

    def train(folder: Path) -> subprocess.Popen:
        return start([sys.executable, "-c", KILL_SCRIPT, Path(__file__).parent, folder])

    assert train(tmp_path / "a").wait() == 0
    rng = np.random.default_rng(0)
    kills = 0
    while kills < 20:
        process = train(tmp_path / "b")
        try:
            process.wait(timeout=float(rng.uniform(2.0, 5.0)))
            (tmp_path / "b" / LAST).unlink(missing_ok=True)  # finished too soon: begin again
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    assert train(tmp_path / "b").wait() == 0
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "b").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
