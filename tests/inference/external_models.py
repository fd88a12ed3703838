"""Small models of other programs for tests: graphs with a description, MONAI bundles, results of nnU-Net."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from torch import nn

from pneumoscope.inference.graphs import Description, toml_beside
from pneumoscope.models.export import to_onnx

LABELS = {0: "background", 1: "ground-glass", 2: "consolidation"}


class Asymmetric(nn.Module):
    """Logits of three classes by a kernel that tells every direction from its opposite."""

    def __init__(self, channels=1, axes=3, classes=3):
        super().__init__()
        self.config = type("Config", (), {"in_channels": channels, "out_channels": classes})()
        kind = nn.Conv3d if axes == 3 else nn.Conv2d
        torch.manual_seed(3)
        self.conv = kind(channels, classes, 3, padding=1)
        with torch.no_grad():
            self.conv.weight *= 6
            self.conv.bias.zero_()

    def forward(self, x):
        return self.conv(x)


def graph(folder: Path, kind: str, network: nn.Module, description: Description, name: str = "lesion") -> str:
    """An ONNX or TorchScript file with its TOML; the name for `--model`."""
    file = folder / f"{name}.{'onnx' if kind == 'onnx' else 'pt'}"
    size = description.patch[1:] if description.slices else description.patch
    if kind == "onnx":
        file.write_bytes(to_onnx(network, size))
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(network.eval()), str(file))
    toml_beside(file).write_text(description.as_toml())
    return f"{kind}:{file}"


def bundle(folder: Path, trained: nn.Module, network: dict, patch=(16, 16, 8), **changes) -> Path:
    """A MONAI bundle without expressions; `changes` are entries of its inference configuration."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    torch.save(trained.state_dict(), folder / "models" / "model.pt")
    pre = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
        {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -1000, "a_max": 400, "b_min": 0, "b_max": 1,
         "clip": True},
    ]  # fmt: skip
    post = [
        {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image",
         "nearest_interp": False, "to_tensor": True},
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "separate_folder": False},
    ]  # fmt: skip
    config = {
        "bundle_root": ".", "output_dir": str(folder / "out"), "network_def": network,
        "preprocessing": {"_target_": "Compose", "transforms": pre},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": list(patch), "overlap": 0.5, "mode": "gaussian"},
        "postprocessing": {"_target_": "Compose", "transforms": post},
        **changes,
    }  # fmt: skip
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    named = {str(number): name for number, name in LABELS.items()}
    meta = {"network_data_format": {"outputs": {"pred": {"channel_def": named}}}}
    (folder / "configs" / "metadata.json").write_text(json.dumps(meta))
    return folder


def nnunet_result(folder: Path, checkpoint, **changes) -> Path:
    """Files as `nnUNetv2_train` leaves them, as far as they are read before nnU-Net is asked."""
    (folder / "fold_0").mkdir(parents=True)
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    dataset = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "infection": 1}, **changes}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {"conv_op": "torch.nn.modules.conv.Conv3d"}, "_kw_requires_import": ["conv_op"],
    }  # fmt: skip
    plans = {"image_reader_writer": "SimpleITKIO", "configurations": {"3d_fullres": {"architecture": architecture}}}
    (folder / "plans.json").write_text(json.dumps(plans))
    return folder


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")
