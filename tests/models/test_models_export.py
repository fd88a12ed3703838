"""Models for other programs: the file computes what the network does, or is not kept."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pneumoscope.errors import InputError, ModelError, RunError
from pneumoscope.geometry import Grid
from pneumoscope.io.files import sha256
from pneumoscope.models import export
from pneumoscope.models.cards import find_model
from pneumoscope.models.classifiers import ChestCNN, ChestCNNConfig
from pneumoscope.models.export import export_model, to_onnx
from pneumoscope.models.options import ModelOptions
from pneumoscope.models.unet import UNet, UNet3D, UNet3DConfig, UNetConfig
from pneumoscope.models.weights import load_model, save_model

needs_onnx = pytest.mark.skipif(not export.is_installed("onnx"), reason="onnx is not installed")

SQUARE = {"kind": "hu_windows", "size": 24, "windows_hu": [[-970, -150]], "lung_channel": True}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    model = UNet(UNetConfig(2, 2, (4, 8)))
    card = {"task": "infiltrate", "licence": "CC0-1.0", "labels": {"0": "infiltrate", "1": "not infiltrate"}}
    save_model(tmp_path / "model", model, {**card, "preprocessing": SQUARE, "limits": ["for tests only"]})
    return tmp_path / "model"


def test_onnx_computes_what_the_network_does(folder, tmp_path, rng):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    done = export_model(folder, tmp_path / "out", "onnx")
    assert done.files == ("card.json", "model.onnx")
    assert done.size == (24, 24)
    assert done.checked_with == "onnxruntime"
    assert done.difference < 1e-4
    session = runtime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    [image], [logits] = session.get_inputs(), session.get_outputs()
    assert (image.name, image.shape) == ("image", ["n", 2, "h", "w"])
    assert (logits.name, logits.shape[0]) == ("logits", "n")
    for size in ((24, 24), (10, 38)):  # any multiple of the stride
        x = rng.random((3, 2, *size), np.float32)
        expected = load_model(folder)[0](torch.from_numpy(x)).detach().numpy()
        assert np.abs(session.run(None, {"image": x})[0] - expected).max() < 1e-4
    assert done.stride == 2
    assert export_model(folder, tmp_path / "odd", "onnx", size=(23, 24)).stride is None


@needs_onnx
def test_the_card_goes_along_with_the_sum_of_the_new_file(folder, tmp_path):
    export_model(folder, tmp_path / "out", "onnx", size=(16, 20))
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["weights"]["sha256"] == sha256(tmp_path / "out" / "model.onnx")
    assert card["export"]["size"] == [16, 20]
    assert card["export"]["dynamic_axes"] == {"0": "n", "2": "h", "3": "w"}
    assert card["export"]["opset"] == 18
    assert card["licence"] == "CC0-1.0"
    assert card["preprocessing"] == SQUARE
    with pytest.raises(ModelError, match=r"holds model\.onnx, an export"):
        load_model(tmp_path / "out")


def test_onnx_is_a_valid_graph_of_standard_operators(folder):
    onnx = pytest.importorskip("onnx")
    graph = onnx.load_from_string(to_onnx(load_model(folder)[0], (24, 24)))
    onnx.checker.check_model(graph, full_check=True)
    assert {node.domain for node in graph.graph.node} <= {"", "ai.onnx"}


@needs_onnx
def test_the_network_is_left_as_it_is(folder):
    model = load_model(folder)[0].train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    to_onnx(model, (16, 16))
    assert model.training
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


@needs_onnx
def test_an_export_that_computes_something_else_is_not_kept(folder, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    torch.manual_seed(9)
    other = to_onnx(UNet(UNetConfig(2, 2, (4, 8))), (24, 24), any_size=True)
    monkeypatch.setattr(export, "to_onnx", lambda *_, **__: other)
    with pytest.raises(RunError, match="differ by"):
        export_model(folder, tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


@needs_onnx
def test_without_a_runtime_the_file_is_written_unchecked(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "is_installed", lambda name: name == "onnx")
    done = export_model(folder, tmp_path / "out", "onnx")
    assert (done.checked_with, done.difference) == (None, None)
    assert (tmp_path / "out" / "model.onnx").stat().st_size > 1000


def test_without_onnx_the_remedy_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"need the package onnx; run `pip install 'pneumoscope\[fast\]'`"):
        export_model(folder, tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()
    assert export_model(folder, tmp_path / "bundle", "bundle").files


@needs_onnx
@pytest.mark.parametrize("name", ["infiltrate", "lungs"])
def test_shipped_models_can_be_exported(name, tmp_path):
    fields = load_model(find_model(name))[1]["preprocessing"]
    done = export_model(name, tmp_path / name, "onnx")
    assert done.size == tuple(fields.get("frame") or fields["patch"])
    assert done.checked_with is None or done.difference < export.TOLERANCE


@pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated")  # MONAI calls it
def test_a_monai_bundle_is_built_and_computes_the_same(folder, tmp_path, rng):
    bundle = pytest.importorskip("monai.bundle")
    done = export_model(folder, tmp_path / "out", "bundle")
    assert done.files == ("configs/inference.json", "configs/metadata.json", "docs/README.md", "models/model.ts")
    parser = bundle.ConfigParser()
    parser.read_config(str(tmp_path / "out" / "configs" / "inference.json"))
    parser.read_meta(str(tmp_path / "out" / "configs" / "metadata.json"))
    parser["bundle_root"] = str(tmp_path / "out")
    network = parser.get_parsed_content("network")
    x = torch.from_numpy(rng.random((1, 2, 24, 24), np.float32))
    with torch.inference_mode():
        mine = load_model(folder)[0](x)
        theirs = parser.get_parsed_content("inferer")(x.to(next(network.parameters()).device), network).cpu()
    assert torch.allclose(mine, theirs, atol=1e-4)
    meta = json.loads((tmp_path / "out" / "configs" / "metadata.json").read_text())
    assert meta["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "infiltrate", "1": "not infiltrate"}
    assert meta["network_data_format"]["outputs"]["pred"]["num_channels"] == 2
    assert meta["card"]["preprocessing"] == SQUARE
    config, meta_file = (str(tmp_path / "out" / "configs" / f"{name}.json") for name in ("inference", "metadata"))
    bundle.verify_net_in_out("network", meta_file=meta_file, config_file=config,
                             device="cpu", bundle_root=str(tmp_path / "out"))  # fmt: skip
    assert "for tests only" in (tmp_path / "out" / "docs" / "README.md").read_text()
    assert str(folder) not in Path(tmp_path / "out" / "configs" / "metadata.json").read_text()


TENSOR = {
    "type": "object",
    "required": ["type", "format", "modality", "num_channels", "spatial_shape", "dtype", "value_range",
                 "is_patch_data", "channel_def"],
    "properties": {
        "type": {"enum": ["image", "series", "tuples", "probabilities"]}, "modality": {"type": "string"},
        "format": {"enum": ["magnitude", "hounsfield", "kspace", "raw", "labels", "classes", "segmentation"]},
        "num_channels": {"type": "integer"}, "is_patch_data": {"type": "boolean"}, "dtype": {"type": "string"},
        "spatial_shape": {"type": "array", "items": {"type": ["integer", "string"]}},
        "value_range": {"type": "array", "items": {"type": "number"}},
        "channel_def": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}  # fmt: skip
TEXTS = ["version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors", "copyright"]
SPECIFICATION = {
    "type": "object",
    "required": [*TEXTS, "schema", "required_packages_version", "network_data_format"],
    "properties": {
        **{name: {"type": "string"} for name in (*TEXTS, "schema", "name", "intended_use")},
        **{name: {"type": "object", "additionalProperties": {"type": "string"}}
           for name in ("changelog", "required_packages_version")},
        "network_data_format": {
            "type": "object", "required": ["inputs", "outputs"],
            "additionalProperties": {"type": "object", "additionalProperties": TENSOR},
        },
    },
}  # fmt: skip
"""The mandatory entries of MONAI's bundle specification; its own schema is on the network."""


@pytest.mark.parametrize("model", ["lungs", "infiltrate", "xray"])
def test_metadata_pass_monais_verification(tmp_path, model):
    bundle = pytest.importorskip("monai.bundle")
    pytest.importorskip("jsonschema")
    export_model(model, tmp_path / "out", "bundle", size=(32, 32) if model == "xray" else None)
    meta, schema = tmp_path / "out" / "configs" / "metadata.json", tmp_path / "schema.json"
    schema.write_text(json.dumps(SPECIFICATION))
    given = {"meta_file": str(meta), "filepath": str(schema), "hash_type": "sha256", "hash_val": sha256(schema)}
    bundle.verify_metadata(**given)
    broken = json.loads(meta.read_text())
    del broken["network_data_format"]["outputs"]["pred"]["modality"]
    meta.write_text(json.dumps(broken))
    with pytest.raises(ValueError, match="'modality' is a required property"):
        bundle.verify_metadata(**given)


def decided(network):
    """The network with an output far from one half on both sides."""
    with torch.no_grad():
        network.head.weight.mul_(40)
    return network


def blocked(*packages):
    """The first lines of a process in which these packages cannot be imported, whatever is installed."""
    return f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages!r}:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
for package in {packages!r}:
    try:
        __import__(package)
    except ImportError:
        continue
    sys.exit(package + " can be imported")
"""


ALONE = """
import json, sys, tomllib
import nibabel as nib
import numpy as np

file, scan, out = sys.argv[1:]
said = tomllib.load(open(file.rpartition(".")[0] + ".toml", "rb"))
image = nib.load(scan)
turn = nib.orientations.ornt_transform(
    nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(said["orientation"])
)
low, high = said["window_hu"][0]
shown = nib.orientations.apply_orientation(np.asarray(image.dataobj, np.float32), turn)
x = ((np.clip(shown, low, high) - low) / (high - low)).astype(np.float32)
x = np.ascontiguousarray(x)[None, None]
assert list(x.shape[2:]) == said["patch"]
if file.endswith(".onnx"):
    import onnxruntime
    logits, = onnxruntime.InferenceSession(file).run(None, {"image": x})
else:
    import torch
    logits = torch.jit.load(file)(torch.from_numpy(x)).detach().numpy()
mask = logits[0].argmax(0).astype(np.uint8)
back = nib.orientations.ornt_transform(
    nib.orientations.axcodes2ornt(said["orientation"]), nib.io_orientation(image.affine)
)
nib.save(nib.Nifti1Image(nib.orientations.apply_orientation(mask, back), image.affine), out)
"""


@pytest.mark.parametrize(
    ("to", "packages"),
    [pytest.param("onnx", ("pneumoscope", "torch", "monai"), marks=needs_onnx),
     ("torchscript", ("pneumoscope", "onnxruntime", "monai"))],
)  # fmt: skip
def test_an_exported_graph_takes_a_scan_to_a_mask_without_pneumoscope(tmp_path, rng, to, packages):
    """A process that knows only a runtime, nibabel and numpy, and does what the description beside the graph says."""
    import nibabel as nib

    from pneumoscope.inference.exports import describe_export
    from pneumoscope.inference.segmenter import Segmenter
    from pneumoscope.io.read import read_volume
    from pneumoscope.volume import Mask

    if to == "onnx":
        pytest.importorskip("onnxruntime")
    torch.manual_seed(10)
    card = {"task": "infiltrate", "labels": {"0": "background", "1": "infiltrate"}}
    fields = {"kind": "hu_volume", "window_hu": [-1000, 400], "patch": [8, 12, 10]}
    save_model(tmp_path / "model", decided(UNet3D(UNet3DConfig(1, 2, (2, 4)))), {**card, "preprocessing": fields})
    affine = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, 7], [0, 0, 3.0, 1], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(rng.uniform(-1000, 400, (12, 10, 8)).astype(np.int16), affine), tmp_path / "scan.nii.gz")
    done = describe_export(export_model(tmp_path / "model", tmp_path / "out", to))
    file = tmp_path / "out" / next(name for name in done.files if name.startswith("model.") and "toml" not in name)
    call = [sys.executable, "-I", "-c", blocked(*packages) + ALONE, file, tmp_path / "scan.nii.gz", tmp_path / "m.nii"]
    subprocess.run([str(word) for word in call], check=True)
    theirs = np.asarray(nib.load(tmp_path / "m.nii").dataobj)
    volume = read_volume(tmp_path / "scan.nii.gz", intensity="hu")
    everywhere = Mask(np.ones(volume.grid.shape, np.uint8), volume.grid, {1: "lung"})
    own = Segmenter(ModelOptions(model=tmp_path / "model", device="cpu", precision="fp32", engine="torch")).run(
        volume, everywhere
    )
    assert np.array_equal(own.infiltrate.to_native(volume.native), theirs)
    assert 0 < theirs.mean() < 1


def test_an_exported_bundle_takes_a_scan_to_a_mask_without_pneumoscope(tmp_path, rng):
    pytest.importorskip("monai.bundle")
    import nibabel as nib

    from pneumoscope.inference.external import Access, open_external
    from pneumoscope.inference.segmenter import Segmenter
    from pneumoscope.io.read import read_volume
    from pneumoscope.volume import Mask

    torch.manual_seed(10)
    network = decided(UNet3D(UNet3DConfig(1, 2, (2, 4))))
    card = {"task": "infiltrate", "labels": {"0": "background", "1": "infiltrate"}}
    fields = {"kind": "hu_volume", "window_hu": [-1000, 400], "patch": [8, 8, 8], "blend": "gaussian"}
    save_model(tmp_path / "model", network, {**card, "preprocessing": fields})
    affine = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, 7], [0, 0, 3.0, 1], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(rng.uniform(-1000, 400, (11, 9, 8)).astype(np.int16), affine), tmp_path / "scan.nii.gz")
    export_model(tmp_path / "model", tmp_path / "out", "bundle")
    root = tmp_path / "out"
    code = blocked("pneumoscope") + (
        "from monai.bundle import run; "
        f"run(config_file={str(root / 'configs' / 'inference.json')!r}, bundle_root={str(root)!r}, "
        f"image={str(tmp_path / 'scan.nii.gz')!r}, output_dir={str(tmp_path / 'masks')!r})"
    )
    subprocess.run([sys.executable, "-I", "-W", "ignore", "-c", code], check=True, capture_output=True)
    theirs = np.asarray(nib.load(next((tmp_path / "masks").rglob("*.nii.gz"))).dataobj).squeeze()
    volume = read_volume(tmp_path / "scan.nii.gz", intensity="hu")
    everywhere = Mask(np.ones(volume.grid.shape, np.uint8), volume.grid, {1: "lung"})
    own = Segmenter(ModelOptions(model=tmp_path / "model", device="cpu", precision="fp32", engine="torch")).run(
        volume, everywhere
    )
    assert np.array_equal(own.infiltrate.to_native(volume.native), theirs)
    assert 0 < theirs.mean() < 1
    again = open_external(f"bundle:{root}", Access(device="cpu"), task="infiltrate").predict(volume)
    assert np.array_equal(again.infiltrate.labels, own.infiltrate.labels)


def test_an_exported_graph_is_a_model_that_segment_takes(tmp_path, rng):
    from pneumoscope.inference.exports import describe_export
    from pneumoscope.inference.external import Access, open_external
    from pneumoscope.inference.segmenter import Segmenter
    from pneumoscope.volume import Mask, Volume

    torch.manual_seed(10)
    fields = {"kind": "hu_volume", "window_hu": [-1000, 400], "patch": [8, 6, 4], "spacing_mm": [1.1, 1.3, 2.0]}
    card = {"task": "infiltrate", "labels": {"0": "background", "1": "infiltrate"}, "preprocessing": fields}
    save_model(tmp_path / "model", decided(UNet3D(UNet3DConfig(1, 2, (2, 4)))), card)
    done = describe_export(export_model(tmp_path / "model", tmp_path / "out", "torchscript"))
    assert done.files == ("card.json", "model.toml", "model.ts")
    volume = Volume.from_native(rng.uniform(-1000, 400, (9, 8, 11)), Grid.from_spacing((9, 8, 11), (1.5, 1.0, 2.5)))
    found = open_external(f"torchscript:{tmp_path / 'out' / 'model.ts'}", Access(device="cpu"), task="infiltrate")
    everywhere = Mask(np.ones(volume.grid.shape, np.uint8), volume.grid, {1: "lung"})
    own = Segmenter(ModelOptions(model=tmp_path / "model", device="cpu", precision="fp32", engine="torch")).run(
        volume, everywhere
    )
    assert np.array_equal(found.predict(volume).probability, own.probability)
    assert len(np.unique(own.probability)) > 10


@needs_onnx
def test_a_3d_network_takes_its_patch(tmp_path):
    card = {"preprocessing": {"kind": "hu_volume", "window_hu": [-1250, 250], "patch": [4, 8, 12]}}
    save_model(tmp_path / "model", UNet3D(UNet3DConfig(1, 4, (2, 4))), card)
    done = export_model(tmp_path / "model", tmp_path / "out", "onnx")
    assert done.size == (4, 8, 12)
    with pytest.raises(InputError, match=r"pictures of 3 axes, got the size \[8, 8\]"):
        export_model(tmp_path / "model", tmp_path / "other", "onnx", size=(8, 8))


@pytest.mark.parametrize("to", [pytest.param("onnx", marks=needs_onnx), "bundle"])
def test_a_classifier_of_radiographs_can_be_exported(tmp_path, to):
    names, licences = ["normal", "bacterial", "viral"], ["CC BY 4.0", "CC0-1.0"]
    card = {"preprocessing": {"size": 32}, "labels": names, "licence": licences}
    save_model(tmp_path / "model", ChestCNN(ChestCNNConfig(features=(2, 4))), card)
    done = export_model(tmp_path / "model", tmp_path / "out", to)
    assert done.size == (32, 32)
    if to == "bundle":
        meta = json.loads((tmp_path / "out" / "configs" / "metadata.json").read_text())
        assert meta["network_data_format"]["outputs"]["pred"]["num_channels"] == 3
        assert meta["copyright"] == "CC BY 4.0, CC0-1.0"


@needs_onnx
def test_what_cannot_be_is_refused(folder, tmp_path):
    export_model(folder, tmp_path / "out", "onnx")
    with pytest.raises(InputError, match="--overwrite"):
        export_model(folder, tmp_path / "out", "onnx")
    export_model(folder, tmp_path / "out", "onnx", overwrite=True)
    with pytest.raises(InputError, match="unknown format"):
        export_model(folder, tmp_path / "x", "tflite")
    save_model(tmp_path / "bare", UNet(UNetConfig(1, 1, (2, 4))))
    with pytest.raises(ModelError, match="names no size"):
        export_model(tmp_path / "bare", tmp_path / "x", "onnx")


@needs_onnx
@pytest.mark.parametrize(
    ("model", "to"), [("infiltrate", "onnx"), pytest.param("lungs", "bundle", marks=pytest.mark.slow)]
)
def test_an_export_is_compared_on_a_scan(tmp_path, model, to, monkeypatch):
    pytest.importorskip("onnxruntime")
    from pneumoscope.datasets.phantom.folder import make_phantom
    from pneumoscope.inference import exports

    volume = make_phantom("A", 2, size="tiny").volume
    done = export_model(model, tmp_path / "out", to)
    found = exports.verify_on_scan(model, done, volume)
    assert (found.voxels, found.differing) == (volume.hu.size, 0)
    assert 100 < found.labelled < found.voxels / 2
    usual = exports.runner
    monkeypatch.setattr(exports, "runner", lambda *given: lambda images: -usual(*given)(images))
    with pytest.raises(RunError, match="otherwise than the network; do not use it"):
        exports.verify_on_scan(model, done, volume)


def test_models_of_other_pictures_are_not_compared_on_scans(tmp_path):
    from pneumoscope.datasets.phantom.folder import make_phantom
    from pneumoscope.inference.exports import verify_on_scan

    done = export_model("xray", tmp_path / "out", "torchscript", size=(32, 32))
    with pytest.raises(InputError, match="not shown scans; leave --check out"):
        verify_on_scan("xray", done, make_phantom("A", 0, size="tiny").volume)
