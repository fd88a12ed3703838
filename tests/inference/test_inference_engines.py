"""Engines agree with each other and with torch, say what they are, work without the packages, and phone nobody."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from pneumoscope.datasets.phantom.folder import scan_patient
from pneumoscope.errors import InputError, RunError
from pneumoscope.inference import engines
from pneumoscope.inference.engines import (
    choose_engine,
    engine_label,
    installed_engines,
    make_engine,
    predict_probability,
)
from pneumoscope.inference.lungs import lungs_input
from pneumoscope.inference.volumes import VolumeInput, predict_volume
from pneumoscope.inference.windows3d import WindowPlan
from pneumoscope.models.cards import find_model
from pneumoscope.models.r3d18_unet import R3D18UNet, R3D18UNetConfig
from pneumoscope.models.unet import UNet, UNet3D, UNet3DConfig, UNetConfig
from pneumoscope.models.weights import load_model
from pneumoscope.preprocess.slices import HuWindow, to_slices
from pneumoscope.training.devices import has_fast_bf16
from pneumoscope.volume import Volume

OTHERS = [pytest.param(n, marks=pytest.mark.skipif(n not in installed_engines(), reason=f"{n} is not installed"))
          for n in ("onnxruntime", "openvino")]  # fmt: skip


@pytest.fixture
def only(monkeypatch):
    """Pretend that just these packages are installed."""

    def set_to(*names):
        monkeypatch.setattr(engines, "is_installed", lambda package: package in names)

    return set_to


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / max(1, np.count_nonzero(a) + np.count_nonzero(b))


def flat2d(seed=0):
    torch.manual_seed(seed)
    return UNet(UNetConfig(2, 2, (4, 8, 8))).eval()


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(
    ("model", "size"),
    [
        (UNet(UNetConfig(2, 2, (4, 8, 8))), (2, 24, 32)),
        (UNet(UNetConfig(1, 1, (4, 8), norm="instance")), (1, 17, 23)),
        (UNet3D(UNet3DConfig(1, 4, (4, 8))), (1, 7, 10, 9)),
        (R3D18UNet(R3D18UNetConfig(2, 4, (8, 6, 5, 3))), (1, 6, 18, 33)),
        (R3D18UNet(R3D18UNetConfig(2, 4, (8, 6, 5, 3), stem="sum")), (1, 8, 16, 16)),
    ],
    ids=["unet", "unet-instance-odd", "unet3d-odd", "r3d18-odd", "r3d18-sum"],
)
def test_the_same_logits_for_any_number_of_pictures(rng, name, model, size):
    reference = make_engine(model, "torch", device="cpu", precision="fp32")
    engine = make_engine(model, name, device="cpu", precision="fp32")
    for n in (1, 3):
        images = rng.standard_normal((n, *size), dtype=np.float32)
        assert np.abs(engine.logits(images) - reference.logits(images)).max() < 1e-3
    empty = engine.logits(np.empty((0, *size), np.float32))
    assert empty.shape == (0, model.config.out_channels, *size[1:])
    assert engine.label == f"{name} fp32"


@pytest.mark.parametrize("name", OTHERS)
def test_classes_of_the_shipped_lung_network_agree(rng, name):
    model, card = load_model(find_model("lungs"))
    made = scan_patient("B", 1, size="tiny").scan.volume
    preprocessing = lungs_input(card)
    chest = preprocessing.coarse(to_slices(made.hu), made.grid.spacing_mm[::-1])
    image = preprocessing.curve(chest + 5 * rng.standard_normal(chest.shape, np.float32))[None, None]
    found = [make_engine(model, e, device="cpu", precision="fp32").logits(image).argmax(1) for e in ("torch", name)]
    present = [c for c in np.unique(found[0]) if np.count_nonzero(found[0] == c) > 500]
    assert len(present) > 1
    assert all(dice(found[0] == c, found[1] == c) >= 0.999 for c in present)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("shipped", ["infiltrate"])
def test_masks_of_the_shipped_networks_agree(rng, name, shipped):
    """Smooth blobs instead of a lung: what matters is that edges fall on the same pixels."""
    model, card = load_model(find_model(shipped))
    fields = card["preprocessing"]
    size = fields.get("frame") or [fields["size"]] * 2
    coarse = torch.from_numpy(rng.random((4, model.config.in_channels, 8, 8), np.float32))
    images = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1).numpy()
    found = []
    for engine in ("torch", name):
        run = make_engine(model, engine, device="cpu", precision="fp32")
        found.append(predict_probability(run, images, batch_size=3, mirror=shipped == "infiltrate"))
    cut = np.quantile(found[0], 0.9)  # blobs look like no infiltrate: any contour of the probability will do
    assert dice(*(probability >= cut for probability in found)) >= 0.999
    assert np.abs(found[0] - found[1]).max() < 1e-3


@pytest.mark.parametrize("name", OTHERS)
def test_masks_of_a_3d_network_agree(rng, name):
    torch.manual_seed(2)
    model = UNet3D(UNet3DConfig(1, 4, (4, 8, 8)))
    with torch.no_grad():  # no class may win everywhere
        model.head.weight.mul_(30)
        model.head.bias -= model.eval()(torch.randn(1, 1, 8, 12, 12)).mean((0, 2, 3, 4))
    hu = rng.normal(-500, 400, (20, 18, 12)).astype(np.float32)
    volume = Volume.from_native(hu, build())
    plan = VolumeInput(HuWindow(-1000, 400), WindowPlan((8, 12, 12)), normalise="zscore")
    found = [
        predict_volume(volume, [make_engine(model, e, device="cpu", precision="fp32")], plan) for e in ("torch", name)
    ]
    present = np.unique(found[0].classes)
    assert len(present) > 1
    assert all(dice(found[0].classes == c, found[1].classes == c) >= 0.999 for c in present)


def build():
    from grids import build_grid

    return build_grid(("L", "P", "S"), shape=(20, 18, 12))


@pytest.mark.skipif("openvino" not in installed_engines(), reason="openvino is not installed")
def test_openvino_never_lowers_the_precision_by_itself(rng):
    engine = make_engine(flat2d(), "openvino", device="cpu", precision="fp32")
    engine.logits(rng.random((1, 2, 16, 16), np.float32))
    [compiled] = engine._compiled.values()
    assert str(compiled.get_property("INFERENCE_PRECISION_HINT")) == "<Type: 'float32'>"
    assert compiled.get_property("INFERENCE_NUM_THREADS") == torch.get_num_threads()


@pytest.mark.skipif("openvino" not in installed_engines(), reason="openvino is not installed")
@pytest.mark.skipif(not has_fast_bf16(torch.device("cpu")), reason="this processor does not compute in bf16")
def test_bf16_is_computed_when_it_is_asked_for(rng):
    model, images = flat2d(), rng.random((2, 2, 32, 32), np.float32)
    exact = make_engine(model, "torch", device="cpu", precision="fp32").logits(images)
    assert make_engine(model, "openvino", device="cpu", precision="auto").label == "openvino fp32"
    engine = make_engine(model, "openvino", device="cpu", precision="bf16")
    assert engine.label == "openvino bf16"
    off = np.abs(engine.logits(images) - exact).max()
    assert 1e-5 < off < 0.05 * np.abs(exact).max()


def test_the_rule_for_auto(only):
    only("onnx", "openvino", "onnxruntime")
    assert choose_engine("auto", device="cpu", precision="fp32") == "openvino"
    assert choose_engine("auto", device="cpu", precision="bf16") == "torch", "its masks in bf16 are not OpenVINO's"
    fast = has_fast_bf16(torch.device("cpu"))
    assert choose_engine("auto", device="cpu") == ("torch" if fast else "openvino")
    only("onnx", "onnxruntime")
    assert choose_engine("auto", device="cpu", precision="fp32") == "onnxruntime"
    assert choose_engine("auto", device="cpu", precision="bf16") == "torch", "ONNX Runtime would compute in fp32"
    only()
    assert choose_engine("auto", device="cpu", precision="fp32") == "torch"
    assert installed_engines() == ("torch",)
    only("openvino", "onnxruntime")
    assert installed_engines() == ("torch",), "without onnx nobody writes their graphs"
    assert engine_label("auto", device="cpu", precision="fp32") == "torch fp32"


@pytest.mark.parametrize("name", ["torch", *OTHERS])
@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_a_label_is_known_before_the_network(name, precision):
    made = make_engine(flat2d(), name, device="cpu", precision=precision)
    assert made.label == engine_label(name, device="cpu", precision=precision)


def test_other_devices_are_torchs(only, monkeypatch):
    only("onnx", "openvino", "onnxruntime")
    monkeypatch.setattr("pneumoscope.training.devices.pick_device", lambda device: torch.device("cuda", 0))
    assert choose_engine("auto", device="cuda") == "torch"
    with pytest.raises(InputError, match="computes on the CPU, not on cuda"):
        choose_engine("openvino", device="cuda")


def test_engines_that_cannot_be_are_refused(only):
    with pytest.raises(InputError, match=r"no engine 'tensorrt'; known are auto, torch, onnxruntime, openvino"):
        choose_engine("tensorrt")
    only()
    with pytest.raises(InputError, match=r"not installed; run `pip install 'pneumoscope\[fast\]'`"):
        choose_engine("openvino", device="cpu")
    only("onnx", "onnxruntime")
    with pytest.raises(InputError, match="no bf16"):
        choose_engine("onnxruntime", device="cpu", precision="bf16")


def test_without_the_packages_everything_works(only, rng):
    only()
    engine = make_engine(flat2d(), device="cpu", precision="fp32")
    images = rng.random((3, 2, 16, 16), np.float32)
    assert engine.name == "torch"
    p = predict_probability(engine, images)
    assert np.allclose(p, predict_probability(flat2d(), images, device="cpu", precision="fp32"), atol=1e-6)


@pytest.mark.parametrize("name", OTHERS)
def test_mirroring_and_empty_stacks_go_through_every_engine(rng, name):
    images = rng.random((3, 2, 16, 16), np.float32)
    engine = make_engine(flat2d(), name, device="cpu", precision="fp32")
    expected = predict_probability(flat2d(), images, mirror=True, device="cpu", precision="fp32")
    assert np.allclose(predict_probability(engine, images, mirror=True, batch_size=2), expected, atol=1e-5)
    assert predict_probability(engine, images[:0]).shape == (0, 2, 16, 16)


@pytest.mark.parametrize("name", OTHERS)
def test_compiled_graphs_do_not_pile_up(rng, name):
    engine = make_engine(flat2d(), name, device="cpu", precision="fp32")
    for side in range(16, 16 + engines.KEPT_SIZES + 2):
        engine.logits(rng.random((1, 2, side, 16), np.float32))
    assert len(engine._compiled) == engines.KEPT_SIZES


def test_what_an_engine_cannot_do_is_one_line(monkeypatch, rng):
    engine = make_engine(flat2d(), "torch", device="cpu", precision="fp32")
    broken = type("Broken", (engines.OpenVinoEngine,), {"_compile": lambda self, graph: 1 / 0})(flat2d(), "fp32")
    monkeypatch.setattr(
        type(broken), "_compile", lambda self, graph: (_ for _ in ()).throw(RuntimeError("Check 'x' failed\nat core"))
    )
    with pytest.raises(RunError, match=r"engine openvino failed \(Check 'x' failed\); use --engine torch"):
        broken.logits(rng.random((1, 2, 16, 16), np.float32))
    assert engine.logits(rng.random((1, 2, 16, 16), np.float32)).shape == (1, 2, 16, 16)


SILENT = """
import socket, sys
calls = []
def noted(name):
    def call(*given, **more):
        calls.append((name, given[:2]))
        raise OSError("no network here")
    return call
class Deaf(socket.socket):
    def connect(self, address):
        if self.family != socket.AF_UNIX:
            calls.append(("connect", address)); raise OSError("no network here")
        super().connect(address)
    def sendto(self, *given):
        calls.append(("sendto", given[1:])); raise OSError("no network here")
socket.socket, socket.getaddrinfo, socket.create_connection = Deaf, noted("getaddrinfo"), noted("create_connection")
sys.addaudithook(lambda event, given: calls.append((event, given)) if event.startswith(("socket.connect",
    "socket.sendto", "socket.getaddrinfo", "subprocess.", "os.posix_spawn", "os.fork")) else None)
import numpy as np, torch
from pneumoscope.inference.engines import installed_engines, make_engine
from pneumoscope.models.unet import UNet, UNetConfig
for name in installed_engines():
    engine = make_engine(UNet(UNetConfig(1, 1, (2, 4))), name, device="cpu", precision="fp32")
    engine.logits(np.zeros((1, 1, 8, 8), np.float32))
import atexit, threading, time
time.sleep(0.3)
threads = [t.name for t in threading.enumerate() if t is not threading.main_thread()]
assert "openvino_telemetry" not in sys.modules, "loaded"
atexit._run_exitfuncs()
print(len(installed_engines()), calls, threads)
try:
    socket.create_connection(("127.0.0.1", 9))
except OSError:
    print(len(calls) > 0)
"""


def test_nothing_leaves_the_machine():
    """A fresh process without any socket ban: no connection, look-up, datagram or child process while engines run."""
    ran = subprocess.run([sys.executable, "-c", SILENT], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == f"{len(installed_engines())} [] []\nTrue", "and the watch itself works"


@pytest.mark.skipif("openvino" not in installed_engines(), reason="openvino is not installed")
def test_openvinos_telemetry_is_not_even_loaded():
    code = "import sys; from pneumoscope.models.export import openvino_core; openvino_core(); " \
           "print([m for m in sys.modules if m.startswith('openvino_telemetry')])"  # fmt: skip
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


SIGNALLED = """
import faulthandler, gc, signal, torch
faulthandler.enable()  # as pytest does; gives the thread a signal stack, which OpenVINO replaces
from pneumoscope.inference.engines import make_engine
from pneumoscope.models.unet import UNet, UNetConfig
engines = [make_engine(UNet(UNetConfig(1, 1, (4, 8))).eval(), "openvino", device="cpu") for _ in range(2)]
for engine in engines:
    engine.logits(torch.zeros(1, 1, 16, 16).numpy())
while engines:
    engines.pop(0)
    del engine
    gc.collect()
    engine = None
signal.signal(signal.SIGINT, lambda *_: print("interrupted"))
signal.raise_signal(signal.SIGINT)
"""


@pytest.mark.skipif("openvino" not in installed_engines(), reason="openvino is not installed")
def test_an_interrupt_after_engines_were_freed():
    """Two networks freed in the order they came left OpenVINO's signal stack behind, unmapped: Ctrl-C crashed."""
    ran = subprocess.run([sys.executable, "-c", SIGNALLED], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (0, "interrupted"), ran.stderr
