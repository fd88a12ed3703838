"""Models of other programs, run by us and by these programs themselves, with the versions that did it.

``make test-peers``. nnU-Net is trained here on phantoms with its own planner and trainer, in minutes; the folder in
PNEUMOSCOPE_PEERS keeps the result between runs.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from inference.external_models import bundle, graph
from pneumoscope.datasets.convert import convert_dataset
from pneumoscope.datasets.phantom.folder import write_phantom
from pneumoscope.inference.external import Access, open_external
from pneumoscope.inference.graphs import Description
from pneumoscope.inference.nnunet import find_results
from pneumoscope.io.read import read_volume
from pneumoscope.preprocess.slices import to_slices
from pneumoscope.volume import array_to_native

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
UNET = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "features": [4] * 6}
LABELS = {0: "background", 1: "ground-glass", 2: "consolidation"}


def native(volume, values):
    """(k, j, i) as SimpleITK gives the file's voxels."""
    return array_to_native(values, volume.native).transpose(2, 1, 0)


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    """The raw data that nnU-Net is trained on: phantoms whose infiltrates are wide and brighter than bone, so that a
    network of eight epochs finds them."""
    folder = Path(os.environ.get("PNEUMOSCOPE_PEERS") or tmp_path_factory.mktemp("peers"))
    if (folder / "raw").exists():
        return folder
    write_phantom(folder / "phantom", "A", 6, size="tiny")
    convert_dataset("phantom", folder / "phantom", folder / "raw", to="nnunet")
    for file in (folder / "raw" / "labelsTr").glob("*.nii.gz"):
        scan = folder / "raw" / "imagesTr" / file.name.replace(".nii.gz", "_0000.nii.gz")
        image, mask = sitk.ReadImage(str(scan)), sitk.ReadImage(str(file))
        for label, grown in [(n, sitk.BinaryDilate(mask == n, [2, 2, 1])) for n in (1, 2)]:
            image = sitk.Mask(image, grown == 0) + sitk.Cast(grown, image.GetPixelID()) * (1200 * label)
            mask = sitk.Mask(mask, grown == 0) + grown * label
        sitk.WriteImage(image, str(scan))
        sitk.WriteImage(mask, str(file))
    return folder


@pytest.fixture(scope="session")
def scan(work):
    """One of them, stored in another order of axes than those that nnU-Net is trained on."""
    file = work / "scan.nii.gz"
    image = sitk.ReadImage(str(sorted((work / "raw" / "imagesTr").glob("*.nii.gz"))[2]))
    sitk.WriteImage(sitk.DICOMOrient(image, "RAI"), str(file))
    return file


@pytest.fixture(scope="session")
def fine(work, scan):
    """The same on a scanner's grid: fine, anisotropic, with flipped axes in another order."""
    image = sitk.ReadImage(str(scan))
    spacing = [1.1, 1.3, 2.5]
    size = [round(n * mm / to) for n, mm, to in zip(image.GetSize(), image.GetSpacing(), spacing, strict=True)]
    wide = sitk.Resample(image, size, sitk.Transform(), sitk.sitkNearestNeighbor, image.GetOrigin(), spacing,
                         image.GetDirection())  # fmt: skip
    file = work / "fine.nii.gz"
    sitk.WriteImage(sitk.DICOMOrient(wide, "SLA"), str(file))
    return file


@pytest.fixture(scope="session")
def results(work):
    """nnU-Net's folder of results with three configurations, one of them in two folds."""
    pytest.importorskip("nnunetv2")
    if len(list(work.glob("nnunet/results/*/*/fold_*/checkpoint_final.pth"))) < 4:
        script = Path(__file__).with_name("train_nnunet.py")
        call = [sys.executable, str(script), str(work / "raw"), str(work), "8", "3d_fullres:2", "2d:1", "3d_lowres:1"]
        subprocess.run(call, check=True, capture_output=True)
    return next(work.glob("nnunet/results/*"))


@pytest.mark.parametrize(
    ("configuration", "chosen", "mirror", "grid"),
    [("3d_fullres", "@0", None, "scan"), ("3d_fullres", "", False, "scan"), ("2d", "", None, "scan"),
     ("3d_fullres", "@1@checkpoint_best", None, "fine"), ("3d_lowres", "@0", False, "fine")],
)  # fmt: skip
def test_nnunet_gives_what_its_own_predictor_writes(tmp_path, results, request, configuration, chosen, mirror, grid):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    file, nnunet = request.getfixturevalue(grid), results / f"nnUNetTrainer__nnUNetPlans__{configuration}"
    started = time.perf_counter()
    model = open_external(f"nnunet:{nnunet}{chosen}", Access(device="cpu", mirror=mirror), task="infiltrate")
    volume = read_volume(file)
    found = model.predict(volume)
    ours = time.perf_counter() - started
    named = find_results(f"{nnunet}{chosen}")
    started = time.perf_counter()
    own = nnUNetPredictor(use_mirroring=mirror is not False, device=torch.device("cpu"), allow_tqdm=False)
    own.initialize_from_trained_model_folder(str(nnunet), named.folds, named.checkpoint)
    own.predict_from_files_sequential([[str(file)]], [str(tmp_path / "own")], save_probabilities=True)
    theirs = time.perf_counter() - started
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "own.nii.gz")))
    assert np.array_equal(native(volume, found.infiltrate.labels), expected)
    assert set(np.unique(expected)) == {0, 1, 2}
    heads = np.load(tmp_path / "own.npz")["probabilities"]
    assert np.abs(native(volume, found.probability) / 255 - heads[1:].sum(0)).max() <= 0.5 / 255 + 1e-6
    print(
        f"nnunetv2 {version('nnunetv2')} {configuration}{chosen}: 0 of {expected.size} voxels differ, "
        f"{np.count_nonzero(expected)} labelled; {ours:.1f} s, its own {theirs:.1f} s"
    )


def test_a_bundle_gives_what_monai_bundle_run_writes(tmp_path, scan):
    from monai.bundle import run
    from monai.networks.nets import BasicUNet

    torch.manual_seed(0)
    network = BasicUNet(**UNET).eval()
    folder = bundle(
        tmp_path / "b", network, {"_target_": "BasicUNet", **UNET}, (32, 32, 32), imports=["$import torch"],
        weights="$torch.load(@bundle_root + '/models/model.pt', weights_only=True)",
        run=["$@network_def.load_state_dict(@weights)", "$@network_def.eval()",
             "$[@postprocessing({'image': x['image'], 'pred': @inferer(x['image'][None], @network_def)[0].detach()}) "
             f"for x in [@preprocessing({{'image': '{scan}'}})]]"],
    )  # fmt: skip
    run(config_file=str(folder / "configs" / "inference.json"), bundle_root=str(folder))
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(next((folder / "out").rglob("*.nii.gz")))))
    volume = read_volume(scan)
    found = open_external(f"bundle:{folder}", Access(device="cpu"), task="infiltrate").predict(volume)
    assert np.array_equal(native(volume, found.infiltrate.labels), expected)
    assert len(np.unique(expected)) > 1
    print(f"monai {version('monai')}: 0 of {expected.size} voxels differ from monai.bundle run")


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_graphs_of_a_basic_unet_give_what_monai_gives(tmp_path, scan, kind):
    from monai.inferers import sliding_window_inference
    from monai.networks.nets import BasicUNet

    torch.manual_seed(0)
    network = BasicUNet(**UNET).eval()
    network.config = type("Config", (), {"in_channels": 1, "out_channels": 3})()
    said = Description(patch=(32, 32, 32), labels=LABELS, window_hu=((-1000, 400),))
    if kind == "torchscript":
        file = tmp_path / "lesion.pt"
        with torch.inference_mode():
            torch.jit.trace(network, torch.zeros(1, 1, 32, 32, 32)).save(str(file))
        file.with_suffix(".toml").write_text(said.as_toml())
        model = f"torchscript:{file}"
    else:
        model = graph(tmp_path, kind, network, said)
    volume = read_volume(scan)
    found = open_external(model, Access(device="cpu"), task="infiltrate").predict(volume)
    image = torch.from_numpy(np.ascontiguousarray((np.clip(to_slices(volume.hu), -1000, 400) + 1000) / 1400)).float()
    behind = torch.full((max(0, 32 - len(image)), *image.shape[1:]), float(image.min()))  # MONAI would pad both ends
    with torch.inference_mode():
        softmaxed = sliding_window_inference(
            torch.cat((image, behind))[None, None], (32, 32, 32), 1, lambda x: network(x).softmax(1), overlap=0.5,
            mode="gaussian",
        )[0].numpy()[:, : len(image)]  # fmt: skip
    other = to_slices(found.infiltrate.labels) != softmaxed.argmax(0)
    second, first = np.sort(softmaxed, axis=0)[-2:]
    differ = np.count_nonzero(other)
    assert not np.any(other & (first - second > 1e-5)), "only where two classes are equally likely"
    assert differ <= 1e-4 * other.size
    print(f"{kind}: {differ} of {other.size} voxels differ from monai {version('monai')} in torch")


@pytest.mark.parametrize(("name", "classes"), [("R231", 3), ("LTRCLobes", 6)])
def test_lungmask_gives_what_it_gives_itself(tmp_path, scan, name, classes):
    pytest.importorskip("lungmask")
    from lungmask import LMInferer
    from lungmask.resunet import UNet

    torch.manual_seed(1)
    network = UNet(n_classes=classes, padding=True, depth=5, up_mode="upsample", batch_norm=True, residual=False)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    model = open_external(f"lungmask:{name}@{tmp_path / 'weights.pth'}", Access(device="cpu"), task="lungs")
    volume = read_volume(scan)
    values, _ = model.network.predict(volume, ())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = LMInferer(modelpath=str(tmp_path / "weights.pth"), force_cpu=True, tqdm_disable=True)
        expected = own.apply(sitk.ReadImage(str(scan)))
    assert np.array_equal(native(volume, values), expected)
    assert set(model.predict(volume).lungs.names) == {1, 2}
    assert (model.predict(volume).lobes is not None) == (classes == 6)
    print(f"lungmask {version('lungmask')} {name}: 0 of {expected.size} voxels differ")


def test_segment_takes_lungs_and_lobes_of_lungmask(tmp_path, scan):
    pytest.importorskip("lungmask")
    from lungmask import LMInferer
    from lungmask.resunet import UNet

    torch.manual_seed(1)
    network = UNet(n_classes=6, padding=True, depth=5, up_mode="upsample", batch_norm=True, residual=False)
    with torch.no_grad():
        network.last.bias[0] -= 10  # no background: lungmask itself cuts the body out
    weights = tmp_path / "weights.pth"
    torch.save(network.state_dict(), weights)
    call = [sys.executable, "-m", "pneumoscope", "segment", "-i", str(scan), "-o", str(tmp_path / "out"), "--quiet"]
    subprocess.run([*call, "--lungs-model", f"lungmask:LTRCLobes@{weights}"], check=True)
    lungs = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "scan" / "lungs.nii.gz")))
    own = LMInferer(modelpath=str(weights), force_cpu=True, tqdm_disable=True).apply(sitk.ReadImage(str(scan)))
    assert np.array_equal(lungs, np.take([0, 2, 2, 1, 1, 1], own))
    assert lungs.any()
    assert "right_upper_lobe" in (tmp_path / "out" / "scan" / "report.json").read_text()
    print(
        f"segment --lungs-model lungmask:LTRCLobes: 0 of {lungs.size} voxels differ from lungmask {version('lungmask')}"
    )


@pytest.mark.parametrize("resampled", [False, True], ids=["1.5 mm already", "resampled to 1.5 mm"])
def test_totalsegmentators_weights_give_what_it_gives(tmp_path, results, fine, monkeypatch, resampled):
    """A scan in another order of axes than RAS. The network is made for 1.5 mm, as TotalSegmentator's own are."""
    pytest.importorskip("totalsegmentator")
    image = sitk.ReadImage(str(fine))[20:60, 30:78, 40:100]
    if not resampled:
        image.SetSpacing((1.5, 1.5, 1.5))
    scan = tmp_path / "scan.nii.gz"
    sitk.WriteImage(image, str(scan))
    place = tmp_path / "Dataset291_TotalSegmentator_part1_organs_1559subj"
    place = place / "nnUNetTrainerNoMirroring__nnUNetPlans__3d_fullres"
    shutil.copytree(results / "nnUNetTrainer__nnUNetPlans__3d_fullres", place, ignore=lambda *_: {"fold_1"})
    dataset = json.loads((place / "dataset.json").read_text())
    dataset["labels"] = {"background": 0, "lung_upper_lobe_left": 1, "lung_lower_lobe_right": 2}
    (place / "dataset.json").write_text(json.dumps(dataset))
    plans = json.loads((place / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["spacing"] = [1.5, 1.5, 1.5]
    (place / "plans.json").write_text(json.dumps(plans))
    for name in ("TOTALSEG_WEIGHTS_PATH", "TOTALSEG_HOME_DIR", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path))
    from totalsegmentator.nnunet import nnUNet_predict_image

    image, *_ = nnUNet_predict_image(
        scan, None, 291, folds=[0], trainer="nnUNetTrainerNoMirroring", device=torch.device("cpu"), quiet=True,
        resample=1.5,
    )  # fmt: skip
    volume = read_volume(scan)
    model = open_external("totalsegmentator:total", Access(device="cpu"), task="lungs")
    found = model.predict(volume)
    sides = array_to_native(found.lungs.labels, volume.native)
    expected = np.take([0, 2, 1], np.asarray(image.dataobj).astype(int))
    assert np.array_equal(sides, expected)
    assert 0.01 < np.mean(expected > 0) < 0.99
    assert found.lobes.names.keys() >= {3, 4}
    print(f"TotalSegmentator {version('TotalSegmentator')}: 0 of {expected.size} voxels differ, "
          f"{np.count_nonzero(expected)} labelled")  # fmt: skip


def test_pickles_of_a_real_result_need_trust(tmp_path, results):
    from inference.external_models import Bomb
    from pneumoscope.errors import ModelError

    nnunet = results / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    for name in ("plans.json", "dataset.json"):
        (tmp_path / name).write_bytes((nnunet / name).read_bytes())
    (tmp_path / "fold_0").mkdir()
    state = torch.load(nnunet / "fold_0" / "checkpoint_final.pth", weights_only=False)
    torch.save({**state, "extra": Bomb(tmp_path / "bomb")}, tmp_path / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(ModelError, match="give --trust"):
        open_external(f"nnunet:{tmp_path}", Access(), task="infiltrate")
    assert not (tmp_path / "bomb").exists()
    open_external(f"nnunet:{tmp_path}", Access(trust=True), task="infiltrate")
    assert (tmp_path / "bomb").exists()
    assert json.loads((tmp_path / "dataset.json").read_text())["labels"]["background"] == 0
