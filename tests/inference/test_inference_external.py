"""Models of other programs: orientation, windows and labels against a second implementation; what is refused."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from grids import all_axis_codes, build_grid
from inference.external_models import LABELS, Asymmetric, Bomb, bundle, graph, nnunet_result
from pneumoscope.errors import InputError, ModelError, PneumoscopeError
from pneumoscope.inference.external import Access, content_of, open_external
from pneumoscope.inference.graphs import Description, read_description
from pneumoscope.inference.segmenter import Segmenter
from pneumoscope.models.options import ModelOptions
from pneumoscope.preprocess.slices import to_slices
from pneumoscope.volume import LUNG_LABELS, Mask, Volume

WINDOW = ((-1000.0, 400.0),)
pytest.importorskip("onnxruntime")


@pytest.fixture
def scan():
    grid = build_grid(("P", "S", "L"), shape=(11, 6, 9), spacing_mm=(0.8, 2.0, 1.2), tilt_degrees=(4, 0, 3))
    hu = np.random.default_rng(0).uniform(-1000, 400, grid.shape)
    return Volume.from_native(hu, grid, case="awkward")


def described(**changes):
    return Description(**{"patch": (16, 16, 16), "labels": LABELS, "window_hu": WINDOW, "blend": "mean", **changes})


def run_turned(volume, codes, network):
    """Labels of the scan turned to `codes`, run in one piece and turned back: a second road to the same voxels."""
    order, flips = volume.grid.reorientation(codes)
    shown = np.flip(volume.hu.transpose(order), [n for n, flip in enumerate(flips) if flip])
    x = torch.from_numpy(np.ascontiguousarray((np.clip(shown, -1000, 400) + 1000) / 1400, np.float32))
    padded = torch.nn.functional.pad(x, [p for n in reversed(x.shape) for p in (0, 16 - n)])
    with torch.inference_mode():
        logits = network(padded[None, None])[0, :, : x.shape[0], : x.shape[1], : x.shape[2]]
    found = logits.argmax(0).numpy().astype(np.uint8)
    return np.flip(found, [n for n, flip in enumerate(flips) if flip]).transpose(np.argsort(order))


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
@pytest.mark.parametrize("codes", ["SPL", "RAS", "PIR", "LSA"])
def test_a_scan_is_shown_in_the_orientation_described(tmp_path, scan, kind, codes):
    network = Asymmetric()
    model = graph(tmp_path, kind, network, described(orientation=codes))
    found = open_external(model, Access(), task="infiltrate").predict(scan)
    assert found.infiltrate.names == {1: "ground-glass", 2: "consolidation"}
    inner = tuple(slice(1, -1) for _ in range(3))  # the scan's edge lies at the window's edge on other sides
    assert np.array_equal(found.infiltrate.labels[inner], run_turned(scan, tuple(codes), network)[inner])
    assert set(np.unique(found.infiltrate.labels)) == {0, 1, 2}


def test_all_orientations_agree_for_a_network_without_directions(tmp_path, scan):
    network = Asymmetric()
    with torch.no_grad():
        kept = network.conv.weight[:, :, 1, 1, 1].clone()
        network.conv.weight.zero_()
        network.conv.weight[:, :, 1, 1, 1] = kept
    masks = []
    for codes in all_axis_codes():
        model = graph(tmp_path, "torchscript", network, described(orientation="".join(codes), patch=(5, 4, 7)))
        masks.append(open_external(model, Access(), task="infiltrate").predict(scan).infiltrate.labels)
    assert all(np.array_equal(mask, masks[0]) for mask in masks)


def test_windows_are_those_of_monai(tmp_path, scan):
    from monai.inferers import SlidingWindowInferer

    network, patch = Asymmetric(), (4, 8, 6)
    model = graph(
        tmp_path, "onnx", network, described(patch=patch, blend="gaussian", labels={0: "bg", 1: "lesion", 2: "rib"})
    )
    external = open_external(model, Access(labels=("rib=ignore",)), task="infiltrate")
    found = external.predict(scan)
    image = (np.clip(to_slices(scan.hu), -1000, 400) + 1000) / 1400
    inferer = SlidingWindowInferer(patch, overlap=0.5, mode="gaussian")
    with torch.inference_mode():
        logits = inferer(
            torch.from_numpy(np.ascontiguousarray(image, np.float32))[None, None], lambda x: network(x).softmax(1)
        )
    expected = logits[0].numpy()
    assert np.array_equal(to_slices(found.infiltrate.labels), expected.argmax(0) == 1)
    assert np.abs(to_slices(found.probability).astype(float) - expected[1] * 255).max() <= 0.51


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_outputs_become_probabilities(tmp_path, scan, activation):
    labels = {1: "infection"} if activation == "sigmoid" else {0: "background", 1: "infection"}
    network = Asymmetric(classes=len(labels))
    if activation == "none":
        network = torch.nn.Sequential(network, torch.nn.Softmax(1))
        network.config = network[0].config
    model = graph(tmp_path, "torchscript", network, described(labels=labels, activation=activation))
    found = open_external(model, Access(), task="infiltrate").predict(scan)
    assert np.array_equal(found.infiltrate.labels == 1, found.probability >= 128)
    assert 0 < found.infiltrate.any.mean() < 1


def test_slices_channels_last_and_several_windows(tmp_path, scan):
    class Last(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Asymmetric(channels=2, axes=2)

        def forward(self, x):
            return self.inner.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    two = ((-1000.0, -500.0), (-500.0, 400.0))
    said = described(patch=(1, 16, 16), slices=True, channels="last", window_hu=two, range=(-1, 1))
    model = graph(tmp_path, "torchscript", Last(), said)
    found = open_external(model, Access(), task="infiltrate").predict(scan).infiltrate.labels
    stack = to_slices(scan.hu)
    shown = np.stack([np.clip((stack - low) / (high - low), 0, 1) * 2 - 1 for low, high in two], 1).astype(np.float32)
    padded = np.pad(shown, [(0, 0), (0, 0)] + [(0, 16 - n) for n in shown.shape[2:]], constant_values=-1)
    with torch.inference_mode():
        expected = Last().inner(torch.from_numpy(padded)).argmax(1).numpy()[:, : stack.shape[1], : stack.shape[2]]
    assert (to_slices(found) == expected)[:, :-1, :-1].all()


def test_a_description_is_read_as_it_was_written(tmp_path):
    said = described(spacing_mm=(1.5, 0.7, 0.7), orientation="RAS", labels={0: "background", 1: 'a "b"'}, overlap=0.25)
    (tmp_path / "m.toml").write_text(said.as_toml())
    assert read_description(tmp_path / "m.onnx") == said


def test_a_bundle_gives_what_its_parts_give_in_monai(tmp_path, scan):
    pytest.importorskip("monai")
    from monai.networks.nets import BasicUNet

    torch.manual_seed(0)
    fields = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "features": [4, 4, 4, 4, 4, 4]}
    network = BasicUNet(**fields).eval()
    folder = bundle(tmp_path / "b", network, {"_target_": "BasicUNet", **fields}, patch=(32, 32, 32))
    model = open_external(f"bundle:{folder}", Access(), task="infiltrate")
    found = model.predict(scan).infiltrate.labels
    from monai.inferers import sliding_window_inference

    image = torch.from_numpy((np.clip(scan.hu, -1000, 400) + 1000) / 1400).float()[None, None]
    with torch.inference_mode():
        logits = sliding_window_inference(image, (32, 32, 32), 1, network, overlap=0.5, mode="gaussian")
    assert np.array_equal(found, logits[0].argmax(0).numpy())
    assert not (folder / "out").exists()  # SaveImaged is left out
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for file in folder.rglob("*.*"):
            archive.write(file, f"b/{file.relative_to(folder)}")
    zipped = open_external(f"bundle:{tmp_path / 'b.zip'}", Access(), task="infiltrate")
    assert np.array_equal(zipped.predict(scan).infiltrate.labels, found)


def test_several_are_averaged_and_own_lungs_are_used(tmp_path, scan):
    labels = {0: "background", 1: "lung right", 2: "left_lung", 3: "GGO"}
    model = graph(tmp_path, "torchscript", Asymmetric(classes=4), described(labels=labels))
    one = Segmenter(ModelOptions(model=model)).run(scan)
    assert one.lungs.names == LUNG_LABELS
    assert one.infiltrate.any.any()
    assert not (one.infiltrate.any & ~one.lungs.any).any()  # infiltrate is given to the nearer lung
    assert one.infiltrate.names == {1: "ground-glass", 2: "consolidation"}
    lungs = Mask(np.ones(scan.grid.shape, np.uint8), scan.grid, LUNG_LABELS)
    twice = Segmenter(ModelOptions(model=[model, model])).run(scan, lungs)
    assert np.array_equal(twice.probability, one.probability)
    assert np.array_equal(twice.infiltrate.any, one.probability >= 128)
    assert len(twice.cards["infiltrate"]["members"]) == 2


def test_labels_get_their_meaning_by_name_or_number(tmp_path, scan):
    labels = {0: "background", 1: "lung_upper_lobe_left", 2: "class_2", 3: "spine"}
    model = graph(tmp_path, "torchscript", Asymmetric(classes=4), described(labels=labels))
    with pytest.raises(ModelError, match=r"lung_upper_lobe_left \(1\), class_2 \(2\).*none of which .*--label"):
        open_external(model, Access(), task="infiltrate")
    external = open_external(model, Access(labels=("2=consolidation",)), task="infiltrate")
    assert "spine (3)" in external.findings[0].message
    found = external.predict(scan)
    assert found.infiltrate.names == {1: "ground-glass", 2: "consolidation"}
    assert set(np.unique(found.infiltrate.labels)) <= {0, 2}
    assert found.lobes.any.any()
    for pair, words in (("9=infiltrate", "no label '9'"), ("class_2=tumour", "cannot mean 'tumour'")):
        with pytest.raises(ModelError, match=words):
            open_external(model, Access(labels=(pair,)), task="infiltrate")


def test_the_content_of_a_model_is_its_files(tmp_path):
    model = graph(tmp_path, "torchscript", Asymmetric(), described())
    before = content_of(model)
    (tmp_path / "lesion.toml").write_text(described(overlap=0.75).as_toml())
    assert content_of(model) != before
    assert content_of("onnx:/nowhere.onnx") != content_of("onnx:/elsewhere.onnx")


def refused(model, words, kind=PneumoscopeError, **access):
    with pytest.raises(kind, match=words) as caught:
        open_external(model, Access(**access), task="infiltrate")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"window_hu": WINDOW * 3}, r"cannot be run on a tensor of \[1, 3, 16, 16, 16\]"),
        ({"labels": {0: "background", 1: "lesion"}}, r"makes \[1, 3, 16, 16, 16\].*expected \[1, 2, 16, 16, 16\]"),
        ({"slices": True, "patch": (1, 16, 16)}, "cannot be run on a tensor"),
    ],
)
def test_other_channels_than_described_are_refused(tmp_path, changes, words):
    model = graph(tmp_path, "onnx", Asymmetric(), described())
    (tmp_path / "lesion.toml").write_text(described(**changes).as_toml())
    refused(model, words, ModelError)


@pytest.mark.parametrize(
    ("entry", "words"),
    [("orientation = 'RRS'", "orientation"), ("patch = [4, 4]", "three sides"), ("window_hu = [[5, 5]]", "window"),
     ("size = 3", "entries size"), ("activation = 'relu'", "softmax"), ("spacing_mm = [0, 1, 1]", "positive"),
     ("patch = [true, true, true]", "cannot be read"), ("patch = [9999, 9999, 9999]", "at most"),
     ("range = [0.0]", "two numbers"), ("overlap = 'half'", "cannot be read"), ("orientation = 3", "cannot be read"),
     ("[labels]\n0 = 'b'\n2 = 'x'", "numbered"), ("nonsense", "cannot be read")],
)  # fmt: skip
def test_a_description_that_cannot_be_is_refused(tmp_path, entry, words):
    model = graph(tmp_path, "torchscript", Asymmetric(), described())
    file = tmp_path / "lesion.toml"
    name = entry.split(" ")[0]
    kept = [line for line in file.read_text().splitlines() if not line.startswith(name)]
    above = file.read_text().partition("[labels]")[0]
    file.write_text(above + entry if entry.startswith("[labels]") else "\n".join([entry, *kept]))
    refused(model, words, ModelError)
    file.unlink()
    refused(model, "pneumoscope model describe", ModelError)


def test_files_that_are_no_models_are_refused(tmp_path):
    for kind, suffix in (("onnx", "onnx"), ("torchscript", "pt")):
        whole = Path(graph(tmp_path, kind, Asymmetric(), described()).partition(":")[2]).read_bytes()
        (tmp_path / "m.toml").write_text(described().as_toml())
        with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
            archive.writestr("readme.txt", "no model")
        for content in (b"no model", b"", whole[: len(whole) // 2], (tmp_path / "other.zip").read_bytes()):
            (tmp_path / f"m.{suffix}").write_bytes(content)
            refused(f"{kind}:{tmp_path / f'm.{suffix}'}", "is no (ONNX|TorchScript)", ModelError)
        refused(f"{kind}:{tmp_path / 'absent'}", "no such file")
        refused(f"{kind}:", "expected KIND:PATH")
    refused("lungmask:R999", "known are R231")
    refused(f"lungmask:R231@{tmp_path / 'absent'}", "nothing is fetched")
    refused(f"bundle:{tmp_path}", "is no MONAI bundle")


NET = {"_target_": "BasicUNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 3, "features": [4] * 6}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network_def": "$open(@bomb, 'w')"}, "runs Python"),
        ({"inferer": "@other", "other": {"_target_": "SimpleInferer", "x": "$open(@bomb, 'w')"}}, "runs Python"),
        ({"network_def": {"_target_": "os.system", "command": "touch @bomb"}}, "builds os.system"),
        ({"network_def": {"_target_": "run_cmd", "cmd_list": ["touch"]}}, "builds run_cmd"),
        ({"network_def": {"_target_": "monai.bundle.run", "config_file": "x"}}, "builds monai.bundle.run"),
        ({"network_def": {"_target_": "monai.networks.nets.transchex.os.system", "command": "touch @bomb"}}, "builds"),
        ({"network_def": {"_target_": "monai.networks.nets.get_pretrained_resnet_medicalnet"}}, "builds"),
        ({"preprocessing": {"_target_": "LoadImaged", "keys": "x", "reader": "os.system", "command": "touch @bomb"}},
         "builds os.system"),
        ({"inferer": {"_target_": "PatchInferer", "merger_cls": "os.system"}}, "builds os.system"),
        ({"network_def": {**NET, "norm": "@##evil"}, "evil": "$open(@bomb, 'w')"}, "runs Python"),
        ({"network_def": "%configs/other.json::network_def"}, "runs Python|builds"),
        ({"inferer": [1]}, "cannot be built"),
        ({"network_def": {**NET, "url": "https://example.org/w.pt"}}, "needs the network"),
        ({"network_def": {**NET, "pretrained": True}}, "needs the network"),
        ({"inferer": {"_target_": "monai.apps.utils.download_url"}}, "needs the network"),
        ({"preprocessing": None}, "cannot be built|no preprocessing|lacks"),
    ],
)  # fmt: skip
def test_bundles_that_run_code_or_fetch_are_refused_and_nothing_runs(tmp_path, changes, words):
    pytest.importorskip("monai")
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"network_def": {"_target_": "os.system", "command": f"touch {tmp_path / 'bomb'}"}}))
    text = json.dumps(changes).replace("@bomb", str(tmp_path / "bomb")).replace("configs/other.json", str(other))
    said = json.loads(text)
    folder = bundle(tmp_path / "b", torch.nn.Conv3d(1, 1, 1), said.pop("network_def", NET), **said)
    refused(f"bundle:{folder}", words)
    assert not (tmp_path / "bomb").exists()


def test_pickles_that_run_code_are_refused_and_nothing_runs(tmp_path):
    pytest.importorskip("monai")
    bomb = tmp_path / "bomb"
    folder = nnunet_result(tmp_path / "nn", {"network_weights": {}, "logging": Bomb(bomb)})
    refused(f"nnunet:{folder}", "give --trust")
    state = folder / "fold_0" / "checkpoint_final.pth"
    for damaged in (state.read_bytes()[:300], b"", b"hello"):
        state.write_bytes(damaged)
        refused(f"nnunet:{folder}", "is no checkpoint that torch can read")
    packed = bundle(tmp_path / "b", torch.nn.Conv3d(1, 1, 1), NET)
    for damaged in ((packed / "models" / "model.pt").read_bytes()[:300], b"", b"hello"):
        (packed / "models" / "model.pt").write_bytes(damaged)
        refused(f"bundle:{packed}", "cannot be read; copy the bundle again")
    torch.save({"x": Bomb(bomb)}, packed / "models" / "model.pt")
    refused(f"bundle:{packed}", "give --trust")
    assert not bomb.exists()
    (packed / "models" / "model.pt").unlink()
    refused(f"bundle:{packed}", "download the whole bundle")


def test_what_is_no_result_of_nnunet_is_refused(tmp_path):
    refused(f"nnunet:{tmp_path / 'absent'}", "no such folder")
    refused(f"nnunet:{tmp_path}", "is no nnU-Net result")
    folder = nnunet_result(tmp_path / "nn", {"network_weights": {}})
    refused(f"nnunet:{folder}@3", r"has no fold_3/checkpoint_final.pth; it has fold_0/checkpoint_final.pth")
    refused(f"nnunet:{folder}@checkpoint_best", "has no checkpoint_best.pth")
    two = nnunet_result(tmp_path / "two", {}, channel_names={"0": "CT", "1": "PET"})
    refused(f"nnunet:{two}", "trained on 2 channels")
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "os.system"
    (folder / "plans.json").write_text(json.dumps(plans))
    refused(f"nnunet:{folder}", "names the class os.system")


@pytest.mark.parametrize(
    ("file", "entry", "words"),
    [
        ("plans.json", {"image_reader_writer": ["SimpleITKIO"]}, "trained on files of"),
        ("plans.json", {"configurations": {"a": {"_kw_requires_import": 3}}}, "nnU-Net|nnunetv2"),
        ("plans.json", {"configurations": {"a": {"network_class_name": ["os.system"]}}}, "which is none of nnU-Net's"),
        ("dataset.json", {"labels": {"infection": 300}}, "expected whole numbers up to 255"),
        ("dataset.json", {"labels": {"infection": 1.5}}, "expected whole numbers up to 255"),
        ("dataset.json", {"labels": {"infection": [[1]]}}, "expected whole numbers up to 255"),
        ("dataset.json", {"labels": {}}, "expected whole numbers up to 255"),
        ("dataset.json", {"channel_names": ["CT"]}, "names no channels"),
        ("dataset.json", [], "expected an object"),
    ],
)
def test_results_of_nnunet_with_wrong_types_are_refused(tmp_path, file, entry, words):
    path = nnunet_result(tmp_path / "nn", {"network_weights": {}}) / file
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, **entry} if isinstance(entry, dict) else entry))
    refused(f"nnunet:{tmp_path / 'nn'}", words)


@pytest.mark.parametrize(
    ("name", "words"),
    [("../evil", "lies outside it"), ("/evil", "lies outside it"), ("b/configs/x", "is no MONAI bundle")],
)
def test_zips_that_reach_outside_or_grow_are_refused(tmp_path, name, words, monkeypatch):
    pytest.importorskip("monai")
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, b"0" * 2000)
    refused(f"bundle:{tmp_path / 'b.zip'}", words)
    for limit, most in (("MAX_FILES", 0), ("MAX_UNPACKED_BYTES", 1000)):
        with monkeypatch.context() as patched:
            patched.setattr(f"pneumoscope.inference.bundles.{limit}", most)
            refused(f"bundle:{tmp_path / 'b.zip'}", "unpack it yourself")
    assert [path.name for path in tmp_path.iterdir()] == ["b.zip"]


def test_networks_that_give_no_numbers_are_refused(tmp_path):
    class Broken(torch.nn.Module):
        def forward(self, x):
            return torch.cat((x, x, x), 1) / 0

    with pytest.raises(PneumoscopeError, match="no numbers"):
        open_external(graph(tmp_path, "torchscript", Broken(), described()), Access(), task="infiltrate")


def test_uncertainty_is_for_our_own_networks(tmp_path):
    model = graph(tmp_path, "torchscript", Asymmetric(), described())
    with pytest.raises(InputError, match="uncertainty needs networks of pneumoscope"):
        Segmenter(ModelOptions(model=model), uncertainty=True)
