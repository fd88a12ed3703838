"""Models of other programs, run by us and by these programs themselves, with the versions that did it.

``make test-peers``. nnU-Net is trained here on phantoms with its own planner and trainer, in minutes; the folder in
PNEUMOSCOPE_PEERS keeps the result between runs.
"""

import json
import os
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
    return Path(os.environ.get("PNEUMOSCOPE_PEERS") or tmp_path_factory.mktemp("peers"))


@pytest.fixture(scope="session")
def scan(work):
    """One phantom, stored in another order of axes than the ones that nnU-Net is trained on."""
    if not (work / "raw").exists():
        write_phantom(work / "phantom", "A", 6, size="tiny")
        convert_dataset("phantom", work / "phantom", work / "raw", to="nnunet")
    file = work / "scan.nii.gz"
    image = sitk.ReadImage(str(sorted((work / "raw" / "imagesTr").glob("*.nii.gz"))[0]))
    sitk.WriteImage(sitk.DICOMOrient(image, "RAI"), str(file))
    return file


@pytest.fixture(scope="session")
def nnunet(work, scan):
    pytest.importorskip("nnunetv2")
    if not list(work.glob("nnunet/results/*/*/fold_1/checkpoint_final.pth")):
        script = Path(__file__).with_name("train_nnunet.py")
        call = [sys.executable, str(script), str(work / "raw"), str(work), "3d_fullres", "2"]
        subprocess.run(call, check=True, capture_output=True)
    return next(work.glob("nnunet/results/*/*/plans.json")).parent


@pytest.mark.parametrize(("folds", "mirror"), [("@0", None), ("@0,1", False)])
def test_nnunet_gives_what_its_own_predictor_writes(tmp_path, nnunet, scan, folds, mirror):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    started = time.perf_counter()
    model = open_external(f"nnunet:{nnunet}{folds}", Access(device="cpu", mirror=mirror), task="infiltrate")
    volume = read_volume(scan)
    found = model.predict(volume)
    ours = time.perf_counter() - started
    started = time.perf_counter()
    own = nnUNetPredictor(use_mirroring=mirror is not False, device=torch.device("cpu"), allow_tqdm=False)
    own.initialize_from_trained_model_folder(str(nnunet), [int(n) for n in folds[1:].split(",")])
    own.predict_from_files_sequential([[str(scan)]], [str(tmp_path / "own")], save_probabilities=True)
    theirs = time.perf_counter() - started
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "own.nii.gz")))
    assert np.array_equal(native(volume, found.infiltrate.labels), expected)
    heads = np.load(tmp_path / "own.npz")["probabilities"]
    assert np.ptp(heads[1:].sum(0)) > 0.05, "a network of a few epochs may name no voxel; its probabilities differ"
    assert np.abs(native(volume, found.probability) / 255 - heads[1:].sum(0)).max() <= 0.5 / 255 + 1e-6
    print(f"nnunetv2 {version('nnunetv2')}: 0 of {expected.size} voxels differ; {ours:.1f} s, its own {theirs:.1f} s")


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
    differ = np.count_nonzero(to_slices(found.infiltrate.labels) != softmaxed.argmax(0))
    assert differ <= 2e-5 * softmaxed[0].size
    print(f"{kind}: {differ} of {softmaxed[0].size} voxels differ from monai {version('monai')} in torch")


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


def test_pickles_of_a_real_result_need_trust(tmp_path, nnunet):
    from inference.external_models import Bomb
    from pneumoscope.errors import ModelError

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
