"""What the infiltrate model learns from, in Hounsfield units or brought towards them, cut to the lungs.

Whole scans are shown as they are. Coronacases and Radiopaedia slices were equalised (CLAHE); a small network, trained
on scans whose equalised slices are made here, takes that back as far as it goes. MedSeg slices are stretched so that
their two peaks, aerated lung and soft tissue, lie where these lie in Hounsfield units.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cc3d
import cv2
import numpy as np
import pydicom
from numpy.typing import NDArray
from scipy import ndimage

from painted_lesions import paint_lesions
from pneumoscope.datasets.phantom.patient import LesionPlan
from pneumoscope.datasets.slices import SliceStack
from pneumoscope.io.read import read_volume
from pneumoscope.models.unet import UNet
from pneumoscope.preprocess.slices import Appearance, LungCrop, resize_nearest, to_slices
from pneumoscope.volume import Mask, Volume

FRAME = (144, 192)
SIZE = 256
LOWEST_HU, HIGHEST_HU = -1024, 400
SHOWN_HU = ((-1024.0, 2000.0), (-1024.0, 3071.0), (-1024.0, 1200.0), (-1250.0, 250.0))
"""Windows before the equalisation, as the slice sets were made: full range of a slice, or Radiopaedia's."""
LUNG_PEAK_HU, TISSUE_PEAK_HU = -860.0, 40.0
VESSEL_HU = -200.0
"""Denser lung than this was vessel or wall before a lesion was painted over it: not stated."""
PAINTED = (
    LesionPlan(0.08, 0.9, (6, 25), 0.2, 1.0),
    LesionPlan(0.25, 1.0, (12, 50), 0.5, 1.5),
)


@dataclass(frozen=True, eq=False)
class HuSlices:
    """Slices of one scan cut to the frame.

    Attributes:
        name: of the scan.
        hu: (n, *FRAME) int16, clipped to LOWEST_HU..HIGHEST_HU.
        target: (n, 1, *FRAME) int8: 1 infiltrate, 0 none, -1 not stated.
        equalised: (n, *FRAME) uint8, the same slices as the slice sets would show them; empty where not made.
        lungs: (n, *FRAME) uint8, 0 or 1; lesions are part of them.
    """

    name: str
    hu: NDArray[np.int16]
    target: NDArray[np.int8]
    equalised: NDArray[np.uint8]
    lungs: NDArray[np.uint8]


def training_volumes(data: Path) -> Iterator[tuple[str, Volume, NDArray[np.bool_]]]:
    """The whole scans that weights may learn from: name, scan, voxels that are not stated (a tumour and its rim)."""
    for path in sorted((data / "ct-volumes" / "reduced").glob("*.nii.gz")):
        volume = read_volume(path)
        yield path.name.removesuffix(".nii.gz"), volume, np.zeros(volume.grid.shape, bool)
    folder = data / "ct-volumes" / "nsclc-LUNG1-001"
    if folder.is_dir():
        volume = read_volume(folder / "image")
        yield "LUNG1-001", volume, ndimage.binary_dilation(tumour(folder, volume), iterations=6)


def tumour(folder: Path, volume: Volume) -> NDArray[np.bool_]:
    """`GTV-1` of the scan's RTSTRUCT."""
    structures = pydicom.dcmread(next((folder / "mask_rtstruct").iterdir()))
    number = next(s.ROINumber for s in structures.StructureSetROISequence if s.ROIName == "GTV-1")
    native = np.zeros(volume.native.shape, np.uint8)
    roi = next(r for r in structures.ROIContourSequence if r.ReferencedROINumber == number)
    for contour in roi.ContourSequence:
        index = volume.native.index(np.asarray(contour.ContourData, float).reshape(-1, 3) * (-1, -1, 1))
        plane = np.zeros((volume.native.shape[1], volume.native.shape[0]), np.uint8)
        cv2.fillPoly(plane, [np.rint(index[:, :2]).astype(np.int32)], 1)
        native[:, :, round(float(index[0, 2]))] |= plane.T
    return Mask.from_native(native, volume.native, {1: "tumour"}).any


def aerated_lungs(volume: Volume) -> NDArray[np.bool_]:
    """Air below -400 HU away from the picture's edge, the two largest pieces, closed over vessels."""
    air = volume.hu < -400
    pieces = cc3d.connected_components(air, connectivity=6)
    edge = np.unique(np.concatenate([pieces[[0, -1]].ravel(), pieces[:, [0, -1]].ravel()]))
    sizes = np.bincount(pieces.ravel())
    sizes[edge] = 0
    sizes[0] = 0
    keep = np.argsort(sizes)[-2:]
    lungs = np.isin(pieces, keep[sizes[keep] > 0.1 * sizes.max()])
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(4 / volume.spacing_mm[0]) + 1,) * 2)
    for k in range(lungs.shape[2]):
        closed = cv2.morphologyEx(lungs[:, :, k].astype(np.uint8), cv2.MORPH_CLOSE, disk)
        lungs[:, :, k] = ndimage.binary_fill_holes(closed)
    return lungs


def hu_slices(data: Path, seed: int = 0) -> Iterator[HuSlices]:
    """Each whole scan as it is, and with painted lesions (`<name>+<seed>`)."""
    rng = np.random.default_rng(seed)
    for name, volume, unstated in training_volumes(data):
        lungs = aerated_lungs(volume)
        inside, hidden = to_slices(lungs), to_slices(unstated)
        yield framed_scan(name, to_slices(volume.hu), inside, hidden, np.zeros(inside.shape, bool), rng)
        mask = Mask(lungs.astype(np.uint8), volume.grid, {1: "lung"})
        for number, plan in enumerate(PAINTED):
            painted = paint_lesions(volume, mask, plan, seed + number)
            assert painted.infiltrate is not None
            drawn, vessels = to_slices(painted.infiltrate.any), to_slices(volume.hu) > VESSEL_HU
            unsure = hidden | (drawn & vessels)
            yield framed_scan(f"{name}+{number}", to_slices(painted.volume.hu), inside, unsure, drawn, rng)
    for path in sorted((data / "ct-volumes" / "covid-slices-ny-sbu").glob("*/*.dcm")):
        picture = pydicom.dcmread(path)
        hu = picture.pixel_array * float(picture.RescaleSlope) + float(picture.RescaleIntercept)
        stack = np.asarray(hu, np.float32)[None]
        nothing, lungs = np.zeros(stack.shape, bool), in_plane_lungs(stack)
        if lungs.mean() > 0.03:
            yield framed_scan(f"{path.parent.name}/{path.stem}", stack, lungs, ~nothing, nothing, rng)


def in_plane_lungs(stack_hu: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Air below -300 HU of single slices (n, h, w) inside the body, closed."""
    out = np.zeros(stack_hu.shape, bool)
    for k, plane in enumerate(stack_hu):
        body = ndimage.binary_fill_holes(ndimage.binary_opening(plane > -300, iterations=2))
        out[k] = ndimage.binary_closing(ndimage.binary_opening(body & (plane < -300), iterations=2), iterations=5)
    return out


def framed_scan(
    name: str, stack_hu: NDArray[np.float32], lungs: NDArray[np.bool_], unstated: NDArray[np.bool_],
    infiltrate: NDArray[np.bool_], rng: np.random.Generator,
) -> HuSlices:  # fmt: skip
    """Slices that show lung and a few beyond its ends, from stacks (n, h, w)."""
    shown = np.flatnonzero(lungs.any(axis=(1, 2)))
    rows = np.arange(max(0, shown[0] - 4), min(len(lungs), shown[-1] + 5))
    crop = LungCrop.around(resize_nearest(lungs, SIZE), FRAME)
    marked = np.where(unstated, 2, infiltrate).astype(np.uint8)[rows]
    target = crop.cut(resize_nearest(marked, SIZE), nearest=True).astype(np.int8)
    target[target == 2] = -1
    small = shrunken(stack_hu[rows])
    noisy = small + np.float32(rng.uniform(0, 40)) * rng.standard_normal(small.shape, dtype=np.float32)
    equalised = Appearance(window_hu=SHOWN_HU[rng.integers(len(SHOWN_HU))]).of_hu(noisy)
    drawn = crop.cut(resize_nearest((lungs | infiltrate)[rows], SIZE).astype(np.uint8), nearest=True)
    return HuSlices(name, framed(small, crop), target[:, None], crop.cut(equalised).astype(np.uint8), drawn)


def shrunken(stack_hu: NDArray[np.float32]) -> NDArray[np.float32]:
    """Slices (n, h, w) at SIZE x SIZE, by area where they shrink."""
    way = cv2.INTER_AREA if min(stack_hu.shape[1:]) > SIZE else cv2.INTER_LINEAR
    return np.stack([cv2.resize(np.ascontiguousarray(plane), (SIZE, SIZE), interpolation=way) for plane in stack_hu])


def framed(stack_hu: NDArray[np.float32], crop: LungCrop) -> NDArray[np.int16]:
    """Cut; outside the slice is air."""
    cut = crop.cut(np.clip(stack_hu, LOWEST_HU, HIGHEST_HU).astype(np.float32) - LOWEST_HU)
    return np.rint(cut + LOWEST_HU).astype(np.int16)


# -- 8-bit slices --------------------------------------------------------------------------------------------


def crop_of(stack: SliceStack) -> LungCrop:
    """The frame of a stack: around its lungs; the whole slice where no lungs are stored."""
    size = stack.images.shape[1:]
    lungs = np.ones(stack.images.shape, bool) if stack.lungs is None else stack.lungs > 0
    return LungCrop.around(lungs, FRAME) if stack.lungs is not None else LungCrop((0, size[0], 0, size[1]), FRAME, size)


def target_of(stack: SliceStack, crop: LungCrop) -> NDArray[np.int8]:
    """Infiltrate (n, 1, *FRAME)."""
    assert stack.infiltrate is not None
    return crop.cut((stack.infiltrate > 0).astype(np.uint8), nearest=True).astype(np.int8)[:, None]


def lungs_of(stack: SliceStack, crop: LungCrop) -> NDArray[np.uint8]:
    """The readers' lungs (n, *FRAME), 0 or 1; none where none are stored."""
    if stack.lungs is None:
        return np.zeros((len(stack.images), *FRAME), np.uint8)
    return crop.cut((stack.lungs > 0).astype(np.uint8), nearest=True).astype(np.uint8)


def towards_hu(stack: SliceStack, back: UNet) -> NDArray[np.int16]:
    """8-bit slices (n, *FRAME) in what comes nearest to Hounsfield units."""
    crop = crop_of(stack)
    if stack.source == "medseg":
        return framed(np.stack([stretched(image) for image in stack.images]), crop)
    return unequalised(crop.cut(stack.images).astype(np.uint8), back)


def unequalised(frames: NDArray[np.uint8], back: UNet) -> NDArray[np.int16]:
    """What the network `back` takes equalised frames (n, *FRAME) for."""
    import torch

    out = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(frames), 8):
            x = torch.from_numpy(frames[start : start + 8, None].astype(np.float32) / np.float32(255))
            out.append(back(x.contiguous(memory_format=torch.channels_last)).float().numpy()[:, 0])
    return np.rint(np.clip(np.concatenate(out) * 1000, LOWEST_HU, HIGHEST_HU)).astype(np.int16)


def equalised_of(stack: SliceStack) -> NDArray[np.uint8]:
    """The equalised slices (n, *FRAME): as they are, or made where they were never equalised."""
    cut = crop_of(stack).cut(stack.images).astype(np.uint8)
    if stack.source != "medseg":
        return cut
    clahe = cv2.createCLAHE(clipLimit=Appearance().clip_limit, tileGridSize=(5, 6))
    return np.stack([clahe.apply(frame) for frame in cut])


def stretched(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """An 8-bit slice in a lung window (h, w), its peaks of aerated lung and soft tissue put to their usual density."""
    smooth = cv2.GaussianBlur(image, (0, 0), 1.5)
    split, _ = cv2.threshold(smooth, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    counts = np.convolve(np.bincount(smooth.ravel(), minlength=256).astype(float), np.ones(7) / 7, mode="same")
    dark = 3 + int(np.argmax(counts[3 : int(split) + 1])) if split > 6 else 3
    bright = int(split) + int(np.argmax(counts[int(split) :]))
    slope = (TISSUE_PEAK_HU - LUNG_PEAK_HU) / max(bright - dark, 60)
    low = float(np.clip(TISSUE_PEAK_HU - slope * bright, -1400, -960))
    slope = (TISSUE_PEAK_HU - low) / bright
    return (low + slope * image.astype(np.float32)).astype(np.float32)
