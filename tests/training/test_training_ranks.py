"""One training in two processes (gloo): the losses of one process with the joint batch, resumed to the same bytes."""

import dataclasses
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch

from pneumoscope.errors import InputError, NonFiniteLossError, RunError
from pneumoscope.models.unet import UNet, UNetConfig
from pneumoscope.training.augment import SliceAugment
from pneumoscope.training.checkpoint import LAST
from pneumoscope.training.data import ArraySource
from pneumoscope.training.devices import count_of, make_fabric
from pneumoscope.training.loop import TrainConfig, fit
from pneumoscope.training.tasks import SegmentationTask

pytestmark = [pytest.mark.enable_socket, pytest.mark.timeout(600)]

TASK = SegmentationTask("dice_cross_entropy")  # Dice over the batch: no mean of the losses of its parts
CONFIG = TrainConfig(
    max_epochs=3, batch_size=3, learning_rate=1e-2, device="cpu", precision="fp32", seed=5, ema=0.9, clip_norm=1.0,
    checkpoint_every_steps=1, frozen=("down.0",),
)  # fmt: skip


def net(seed=0):
    torch.manual_seed(seed)
    return UNet(UNetConfig(2, 2, (4, 8), dropout=0.0))


@pytest.fixture
def odd(toy):
    """Five examples in batches of three and two: two processes cannot share the first equally."""
    some = [
        ArraySource(source.images[:n], source.targets[:n], source.names[:n])
        for source, n in zip(toy, (7, 5), strict=True)
    ]
    return dataclasses.replace(some[0], augment=SliceAugment(drop_channel=(1, 0.3))), some[1]


def test_two_processes_lose_what_one_with_the_joint_batch_does(odd, tmp_path):
    one, two, seen = net(), net(), []
    alone = fit(one, TASK, *odd, CONFIG, tmp_path / "one")
    both = fit(
        two, TASK, *odd, dataclasses.replace(CONFIG, device="cpu*2"), tmp_path / "two",
        progress=lambda *now: seen.append(now),
    )  # fmt: skip
    for a, b in zip(alone.history, both.history, strict=True):
        assert b == pytest.approx(a, rel=1e-4)
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4, msg=name)
    assert not two.training
    assert [done for what, done, *_ in seen if what == "two"] == [1, 2, 3], "one process says how far it is"
    taken = fit(net(9), TASK, *odd, CONFIG, tmp_path / "two", resume=True)
    assert taken.history == both.history, "a training may be resumed with another number of processes"


@pytest.mark.slow
def test_a_batch_of_one_for_two_processes(odd, tmp_path):
    config = dataclasses.replace(CONFIG, batch_size=4, max_epochs=2)  # 4 and 1
    alone = fit(net(), TASK, *odd, config, tmp_path / "one")
    both = fit(net(), TASK, *odd, dataclasses.replace(config, device="cpu*2"), tmp_path / "two")
    for a, b in zip(alone.history, both.history, strict=True):
        assert b == pytest.approx(a, rel=1e-4)


@pytest.mark.slow
def test_terminated_and_resumed_to_the_same_bytes(odd, tmp_path):
    config, stopped = dataclasses.replace(CONFIG, device="cpu*2"), []
    fit(net(), TASK, *odd, config, tmp_path / "a" / "x")

    def stop(what, done, total, note=""):
        if not stopped and what == "x epoch 2":
            stopped.append(done)
            os.kill(os.getpid(), signal.SIGTERM)

    def terminated(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(net(), TASK, *odd, config, tmp_path / "b" / "x", progress=stop)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped
    assert (tmp_path / "a/x" / LAST).read_bytes() != (tmp_path / "b/x" / LAST).read_bytes()
    fit(net(9), TASK, *odd, config, tmp_path / "b" / "x", resume=True)
    for name in ("history.csv", LAST):
        assert (tmp_path / "a/x" / name).read_bytes() == (tmp_path / "b/x" / name).read_bytes()


def test_a_process_that_dies_ends_the_training_with_a_line(odd, tmp_path):
    import psutil

    killed = []

    def kill(what, done, total, note=""):
        if not killed:
            killed.extend(p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline()))
            killed[-1].kill()

    endless = dataclasses.replace(CONFIG, device="cpu*2", max_epochs=10**6)
    with pytest.raises(RunError, match=r"on 2 devices has ended: its process was killed \(SIGKILL\)"):
        fit(net(), TASK, *odd, endless, tmp_path, progress=kill)
    deadline = time.monotonic() + 20
    while any(p.is_running() and p.status() != "zombie" for p in killed) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [p for p in killed if p.is_running() and p.status() != "zombie"]
    assert threading.active_count() < 20


@pytest.mark.slow
def test_what_the_training_raises_is_raised(odd, tmp_path):
    broken = dataclasses.replace(odd[0], images=np.full_like(odd[0].images, np.nan, dtype=np.float32), augment=None)
    with pytest.raises(NonFiniteLossError, match="the loss is nan at epoch 1, step 1"):
        fit(net(), TASK, broken, odd[1], dataclasses.replace(CONFIG, device="cpu*2"), tmp_path)


@pytest.mark.parametrize("device", ["cpu*", "cpu*0", "cpu*-1", "cuda*two", "cpu*2*2"])
def test_a_number_of_devices_that_is_none(device):
    with pytest.raises(InputError, match=r"several devices are DEVICE\*N"):
        count_of(device)


def test_more_devices_than_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="3 devices were asked for, and this machine has 2 of cuda"):
        make_fabric("cuda*3", "fp32")
