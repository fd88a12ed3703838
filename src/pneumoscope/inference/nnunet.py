"""Trained nnU-Net v2 models through nnU-Net's own predictor: ``nnunet:FOLDER[@fold[,fold]][@checkpoint]``.

FOLDER is what `nnUNetv2_train` writes (``nnUNetTrainer__nnUNetPlans__3d_fullres`` with plans.json, dataset.json and
fold_0, ...), or the folder above it. No environment variables are needed. nnU-Net does not turn scans: voxels are shown
in the order of the file, as `nnUNetv2_predict` does. ``totalsegmentator:total[@FOLDER]`` is the nnU-Net with lobes that
TotalSegmentator keeps on this machine; around it stands what TotalSegmentator does, see `TotalSegmentator`.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import InputError, ModelError, RunError
from pneumoscope.geometry import Grid, reorient_array
from pneumoscope.inference.external import Access, Network, quietly
from pneumoscope.inference.volumes import to_bytes
from pneumoscope.io.files import read_json
from pneumoscope.models.export import is_installed
from pneumoscope.progress import Progress, silent
from pneumoscope.volume import RAS, Volume, array_to_native

TOTAL = "Dataset291_TotalSegmentator_part1_organs_1559subj"
"""What TotalSegmentator calls its network for organs and lobes."""

SPACING_MM = 1.5  # Of the scans that TotalSegmentator shows to that network

CHECKPOINT = "checkpoint_final.pth"

READERS: Mapping[str, bool] = {
    "SimpleITKIO": False, "NibabelIO": False, "SimpleITKIOWithReorient": True, "NibabelIOWithReorient": True,
}  # fmt: skip
"""Readers of nnU-Net for volumes, and whether they turn a scan to RAS."""

SAFE_CLASS = re.compile(
    r"dynamic_network_architectures\.(architectures|building_blocks)\.[a-z_0-9]+\.[A-Z]\w*"
    r"|torch\.nn\.(modules\.[a-z_0-9]+\.)?[A-Z]\w*|[A-Z]\w*"
)
"""Classes that plans.json may name without `--trust`: parts of networks, and nothing that runs on its own."""


@dataclass(frozen=True)
class Results:
    """What a call names."""

    folder: Path  # with plans.json and dataset.json
    folds: tuple[str, ...]  # names behind ``fold_``
    checkpoint: str  # file name in each fold

    @property
    def files(self) -> list[Path]:
        """All that shapes a result."""
        weights = [self.folder / f"fold_{fold}" / self.checkpoint for fold in self.folds]
        return [self.folder / "plans.json", self.folder / "dataset.json", *weights]


def files_of(kind: str, path: str) -> list[Path]:
    """See `external.content_of`."""
    return find_results(_totalsegmentator(path) if kind == "totalsegmentator" else path).files


def _totalsegmentator(spec: str) -> str:
    """The folder of ``total[@FOLDER]``: FOLDER, or where TotalSegmentator itself put its weights.

    Raises:
        ModelError: another task, or no such folder.
    """
    name, _, given = spec.partition("@")
    if name != "total":
        raise ModelError(f"of TotalSegmentator's tasks only total has lobes; expected total[@FOLDER], got {spec!r}")
    home = os.environ.get("TOTALSEG_HOME_DIR") or Path.home() / ".totalsegmentator"
    kept = os.environ.get("TOTALSEG_WEIGHTS_PATH") or Path(home) / "nnunet" / "results"
    folder = Path(given) if given else Path(kept) / TOTAL
    if not folder.is_dir():
        raise ModelError(
            "the weights of TotalSegmentator's total are not there, and nothing is fetched; run TotalSegmentator "
            "itself once, or name the folder with totalsegmentator:total@FOLDER",
            path=folder,
        )
    return str(folder)


def find_results(spec: str) -> Results:
    """The trained folder, folds and checkpoint of ``FOLDER[@fold][@checkpoint]``; nothing is loaded.

    Raises:
        ModelError: no result of nnU-Net v2, or no such fold or checkpoint.
    """
    parts, extra = spec, list[str]()
    while not Path(parts).is_dir() and "@" in parts:
        parts, _, last = parts.rpartition("@")
        extra.insert(0, last)
    folder = Path(parts)
    expected = "expected what nnUNetv2_train wrote: a folder with plans.json, dataset.json and fold_0, ..."
    if not folder.is_dir():
        raise ModelError(f"no such folder; {expected}", path=folder)
    if not (folder / "plans.json").is_file():
        inside = sorted(path.parent for path in folder.glob("*/plans.json"))
        if len(inside) > 1:
            raise ModelError(
                f"holds {len(inside)} results ({', '.join(p.name for p in inside)}); give one", path=folder
            )
        if not inside:
            raise ModelError(f"is no nnU-Net result; {expected}", path=folder)
        folder = inside[0]
    if not (folder / "dataset.json").is_file():
        raise ModelError(f"holds plans.json but no dataset.json; {expected}", path=folder)
    checkpoint = next((part for part in extra if not _is_fold(part)), CHECKPOINT)
    checkpoint += "" if checkpoint.endswith(".pth") else ".pth"
    there = sorted(p.parent.name.removeprefix("fold_") for p in folder.glob(f"fold_*/{checkpoint}"))
    folds = [fold for part in extra if _is_fold(part) for fold in part.split(",")]
    missing = [fold for fold in folds if fold not in there]
    if missing or not there or Path(checkpoint).name != checkpoint:
        what = f"fold_{missing[0]}/{checkpoint}" if missing else checkpoint
        found = sorted(p.relative_to(folder).as_posix() for p in folder.glob("fold_*/*.pth"))
        raise ModelError(f"has no {what}; it has {', '.join(found) or 'no checkpoint'}", path=folder)
    if not folds:
        folds = [fold for fold in there if fold != "all"] or there
    return Results(folder, tuple(folds), checkpoint)


def _is_fold(part: str) -> bool:
    return all(fold.isdigit() or fold == "all" for fold in part.split(","))


def read(kind: str, path: str, access: Access) -> NnUnet:
    """Open a trained nnU-Net; see `external.open_external`."""
    total = kind == "totalsegmentator"
    results = find_results(_totalsegmentator(path) if total else path)
    labels = _labels(read_json(results.folder / "dataset.json", error=ModelError), results.folder)
    plans = read_json(results.folder / "plans.json", error=ModelError)
    reader = str(plans.get("image_reader_writer"))
    if reader not in READERS:
        raise ModelError(
            f"was trained on files of {reader}, expected volumes ({', '.join(READERS)})", path=results.folder
        )
    if not access.trust:
        for name in _classes_of(plans):
            if not SAFE_CLASS.fullmatch(name):
                raise ModelError(
                    f"plans.json names the class {name[:80]}, which is none of nnU-Net's; to run it give --trust",
                    path=results.folder,
                )
        for weights in results.files[2:]:
            _require_plain(weights)
    if not is_installed("nnunetv2"):
        raise InputError("models of nnU-Net need the package nnunetv2; run `pip install 'pneumoscope[nnunet]'`")
    if total:
        return TotalSegmentator(results, labels, True, replace(access, mirror=bool(access.mirror)))
    return NnUnet(results, labels, READERS[reader], access)


def _labels(dataset: Mapping[str, Any], folder: Path) -> dict[str, tuple[int, ...]]:
    channels, given = dataset.get("channel_names") or dataset.get("modality"), dataset.get("labels")
    if not isinstance(channels, dict) or not isinstance(given, dict):
        raise ModelError("dataset.json names no channels or no labels; copy the result again", path=folder)
    if len(channels) != 1:
        raise ModelError(
            f"was trained on {len(channels)} channels ({', '.join(map(str, channels.values()))}), expected one: the CT",
            path=folder,
        )
    values = {str(name): tuple(v) if isinstance(v, list) else (v,) for name, v in given.items()}
    wrong = [v for numbers in values.values() for v in numbers if type(v) is not int or not 0 <= v <= 255]
    if wrong or not values:
        raise ModelError(f"dataset.json has the labels {given!r:.60}, expected whole numbers up to 255", path=folder)
    return {name: tuple(n for n in v if n) for name, v in values.items() if any(v) and name != "ignore"}


def _classes_of(plans: Any) -> Iterator[str]:
    """Names in plans.json that nnU-Net would import, in any of its layouts."""
    stack = [plans.get("configurations")]
    while stack:
        item = stack.pop()
        stack += list(item.values()) if isinstance(item, dict) else item if isinstance(item, list) else []
        if not isinstance(item, dict):
            continue
        given = item.get("_kw_requires_import")
        keyed = [str(key) for key in (given if isinstance(given, list) else [given])]
        kwargs = item.get("arch_kwargs")
        kwargs = kwargs if isinstance(kwargs, dict) else {}
        named = [item.get("network_class_name"), item.get("UNet_class_name"), *(kwargs.get(key) for key in keyed)]
        yield from (str(name) for name in named if name is not None)


def _require_plain(path: Path) -> None:
    """Refuse a checkpoint that holds more than tensors, numbers and text: reading such a pickle runs its code.

    Raises:
        ModelError: it does, or it is damaged.
    """
    import torch

    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(name)) for name in ("float64", "float32", "float16", "int64", "int32", "bool")]
    plain = [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype, *kinds]
    try:
        with torch.serialization.safe_globals(plain):  # type: ignore[arg-type]
            torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as problem:
        raise ModelError(
            "holds pickled Python objects, which run code of whoever made the file when it is read; give --trust if "
            "you trust them",
            path=path,
        ) from problem
    except Exception as problem:  # a damaged pickle fails in any way
        raise ModelError("is no checkpoint that torch can read; copy the result again", path=path) from problem


class NnUnet(Network):
    """nnU-Net's predictor with its own preprocessing, sliding windows, mirroring and way back."""

    step = 0.5
    """From one window to the next, as a share of its sides."""

    def __init__(self, results: Results, labels: Mapping[str, tuple[int, ...]], turned: bool, access: Access) -> None:
        import torch

        from pneumoscope.training.devices import pick_device

        self.path, self.labels, self._turned = results.folder, labels, turned
        self.mirrored = access.mirror is not False
        self.engine = f"nnunetv2 {metadata.version('nnunetv2')}"
        device = pick_device(access.device)
        with quietly():
            from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

            self._predictor = nnUNetPredictor(
                tile_step_size=self.step, use_mirroring=self.mirrored,
                perform_everything_on_device=device.type == "cuda",
                device=torch.device(device), allow_tqdm=False,
            )  # fmt: skip
            try:
                self._predictor.initialize_from_trained_model_folder(
                    str(results.folder), results.folds, results.checkpoint
                )
            except Exception as problem:  # whatever nnU-Net meets in a folder of another version or trainer
                reason = " ".join(str(problem).split())[:200] or type(problem).__name__
                raise ModelError(f"cannot be opened by {self.engine}: {reason}", path=results.folder) from problem
        if self._predictor.configuration_manager.previous_stage_name is not None:
            raise ModelError(
                "is the second stage of a cascade; give its 3d_lowres or a 3d_fullres result", path=self.path
            )

    def predict(
        self, volume: Volume, probable: Sequence[str], progress: Progress = silent
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """See `Network.predict`."""
        grid = volume.native.reorient(RAS) if self._turned else volume.native
        image = array_to_native(volume.hu, grid)
        progress("windows", 0, 1)
        try:
            with quietly():
                found = self._shown(image, grid.spacing_mm, probable=bool(probable))
        except RuntimeError as problem:
            raise RunError(f"{self.engine} failed: {' '.join(str(problem).split())[:200]}", path=self.path) from problem
        progress("windows", 1, 1)
        if not probable:
            return _inside(found, grid), None
        return _inside(found[0], grid), _inside(to_bytes(self._joint(np.asarray(found[1]), probable)), grid)

    def _shown(self, image: NDArray[np.float32], spacing_mm: Sequence[float], *, probable: bool) -> Any:
        """Labels (k, j, i), or these and probabilities (c, k, j, i), of an image (i, j, k) in the order of its file."""
        turned = np.ascontiguousarray(image.transpose(2, 1, 0))[None]
        properties = {"spacing": list(spacing_mm[::-1])}
        return self._predictor.predict_single_npy_array(turned, properties, None, None, probable)

    def _joint(self, heads: NDArray[np.float32], names: Sequence[str]) -> NDArray[np.float32]:
        """Of labels the sum, of regions, which lie in each other, the largest."""
        if self._predictor.label_manager.has_regions:
            order = list(self.labels)
            joint = heads[[order.index(name) for name in names]].max(axis=0)
        else:
            joint = heads[sorted({value for name in names for value in self.labels[name]})].sum(axis=0)
        if not np.isfinite(joint.sum()):
            raise RunError("gave probabilities that are no numbers; train or copy it again", path=self.path)
        return np.asarray(joint, np.float32)


class TotalSegmentator(NnUnet):
    """The same as TotalSegmentator runs it: windows that overlap by a fifth, on 1.5 mm voxels made by linear
    interpolation in whole Hounsfield units; labels come back by the nearest voxel, without probabilities."""

    step = 0.8

    def predict(
        self, volume: Volume, probable: Sequence[str], progress: Progress = silent
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """See `Network.predict`."""
        return super().predict(volume, (), progress)

    def _shown(self, image: NDArray[np.float32], spacing_mm: Sequence[float], *, probable: bool) -> Any:
        from scipy import ndimage

        spacing = np.asarray(spacing_mm, np.float32)  # as a NIfTI header holds it
        if (spacing == SPACING_MM).all():
            return super()._shown(image, spacing_mm, probable=probable)
        resampled = ndimage.zoom(image.astype(np.float64), spacing / SPACING_MM, mode="nearest", order=1)
        found = super()._shown(np.trunc(resampled).astype(np.float32), (SPACING_MM,) * 3, probable=probable)
        back = np.divide(image.shape[::-1], found.shape)
        return ndimage.zoom(np.asarray(found), back, mode="nearest", order=0)


def _inside(values: Any, grid: Grid) -> NDArray[np.uint8]:
    """nnU-Net's (k, j, i) on `grid` as bytes (i, j, k) in RAS+."""
    array = np.asarray(values).transpose(2, 1, 0)
    return np.ascontiguousarray(reorient_array(array, *grid.reorientation(RAS)).astype(np.uint8))
