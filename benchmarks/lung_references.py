"""References of the lungs of real scans: contours that come with them, or density where nothing in the lungs is dense.

Arrays are in the house view (d, h, w); the working grid has 3 x 2 x 2 mm.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cc3d
import cv2
import numpy as np
import pydicom
from numpy.typing import NDArray
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from painted_chest import AIRWAY, GAS, Chest, on_grid
from pneumoscope.inference.lungs import split_sides
from pneumoscope.preprocess.slices import to_slices
from pneumoscope.preprocess.spatial import coarse_size
from pneumoscope.volume import Mask, Volume

REDUCED = ("LIDC-0050", "ACRIN-FLT-001", "CPTAC-C3N-00247")
WORK_MM = (3.0, 2.0, 2.0)


def contours(path: Path, volume: Volume) -> dict[str, NDArray[np.bool_]]:
    """The structures of an RTSTRUCT as (i, j, k) masks; pixels the contour runs through belong to it."""
    structures = pydicom.dcmread(path)
    names = {item.ROINumber: str(item.ROIName) for item in structures.StructureSetROISequence}
    out = {}
    for roi in structures.ROIContourSequence:
        native = np.zeros(volume.native.shape, np.uint8)
        for contour in roi.ContourSequence:
            lps = np.asarray(contour.ContourData, float).reshape(-1, 3)
            index = volume.native.index(lps * (-1, -1, 1))
            plane = np.zeros((volume.native.shape[1], volume.native.shape[0]), np.uint8)
            cv2.fillPoly(plane, [np.rint(index[:, :2]).astype(np.int32)], 1)
            native[:, :, round(float(index[0, 2]))] ^= plane.T
        out[names[roi.ReferencedROINumber]] = Mask.from_native(native, volume.native, {1: "structure"}).any
    return out


def bodies(hu: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The largest piece of tissue of each slice, its air included."""
    out = np.zeros(hu.shape, bool)
    for k, plane in enumerate(hu):
        tissue = cv2.morphologyEx((plane > -500).astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
        n, pieces, sizes, _ = cv2.connectedComponentsWithStats(tissue)
        if n > 1:
            out[k] = ndimage.binary_fill_holes(pieces == 1 + sizes[1:, 4].argmax())
    return out


def airway(hu: NDArray[np.float32], body: NDArray[np.bool_], top: int) -> NDArray[np.bool_]:
    """Trachea and main bronchi: followed down from slice `top` through pieces of gas that stay small."""
    out, last = np.zeros(hu.shape, bool), None
    for k in range(top, -1, -1):
        here = np.zeros(body[k].shape, bool)
        for limit in (-700, -800, -880, -930):
            n, pieces, size, centre = cv2.connectedComponentsWithStats(
                ((hu[k] < limit) & body[k]).astype(np.uint8), connectivity=4
            )
            mm2 = size[:, 4] * WORK_MM[1] * WORK_MM[2]
            if last is None:
                middle = np.mean(np.nonzero(body[k])[1]) if body[k].any() else 0
                apart = np.abs(centre[:, 0] - middle) * WORK_MM[2]
                found = [i for i in range(1, n) if 50 < mm2[i] < 700 and apart[i] < 35]
                keep = [min(found, key=lambda i: apart[i])] if found else []
            else:
                near = ndimage.binary_dilation(last)
                keep = [
                    i for i in range(1, n)
                    if (near & (pieces == i)).any() and mm2[i] < 700 and size[i, 2] < 40 and size[i, 3] < 22
                    and hu[k][pieces == i].mean() < -860
                ]  # fmt: skip
            here |= np.isin(pieces, keep)
            if last is None and keep:
                break
        if not here.any():
            if last is None:
                continue
            break
        out[k] = last = here
    return out


def by_density(hu: NDArray[np.float32]) -> NDArray[np.int8]:
    """Classes of a chest without dense lung: air below -400 HU in the body less the airways, large pieces, closed."""
    body = bodies(hu)
    air = (hu < -400) & body
    inner = cc3d.largest_k(air & ndimage.binary_erosion(body, np.ones((1, 9, 9))), k=1, connectivity=6) > 0
    top = int(np.flatnonzero(inner.sum(axis=(1, 2)) > 500)[-1])  # air between head and arms hangs together with none
    tube = airway(hu, body, min(top + 8, len(hu) - 1))
    around = ndimage.binary_dilation(tube, iterations=2)
    pieces = cc3d.connected_components(air & ~around, connectivity=6)
    sizes = cc3d.statistics(pieces)["voxel_counts"] * np.prod(WORK_MM) / 1000
    sizes[0] = 0
    lung = np.isin(pieces, [i for i in np.argsort(sizes)[::-1][:4] if sizes[i] > 80])
    ball = ndimage.iterate_structure(ndimage.generate_binary_structure(3, 1), 2)
    lung |= ndimage.binary_closing(np.pad(lung, 4), ball)[4:-4, 4:-4, 4:-4]
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
    for k in range(len(lung)):
        lung[k] = cv2.morphologyEx(lung[k].astype(np.uint8), cv2.MORPH_CLOSE, disk) > 0
        holes, _ = ndimage.label(ndimage.binary_fill_holes(lung[k]) & ~lung[k])
        small = np.bincount(holes.ravel()) < 150
        small[0] = False
        lung[k] |= small[holes]
    classes = split_sides(lung & ~tube, WORK_MM[::-1])[0].astype(np.int8)
    return with_gas(hu, body, tube, around, classes)


def with_gas(
    hu: NDArray[np.float32], body: NDArray[np.bool_], tube: NDArray[np.bool_], around: NDArray[np.bool_],
    classes: NDArray[np.int8],
) -> NDArray[np.int8]:  # fmt: skip
    """Airways and other gas added: what is left of the air inside the body is gas below and airway above."""
    classes[(classes == 0) & (tube | (around & (hu < -500)))] = AIRWAY
    rest = (classes == 0) & (hu < -400) & ndimage.binary_erosion(body, np.ones((1, 9, 9)))
    slices = np.flatnonzero((classes > 0).any(axis=(1, 2)))
    lower = int(slices[0] + (slices[-1] - slices[0]) // 3)
    classes[:lower][rest[:lower]] = GAS
    classes[lower:][rest[lower:]] = AIRWAY
    return classes


def working(volume: Volume, classes: NDArray[np.int8] | None = None) -> Chest:
    """A scan (and classes, (d, h, w)) on the working grid."""
    hu = np.ascontiguousarray(to_slices(volume.hu))
    spacing = volume.grid.spacing_mm[::-1]
    empty = np.zeros(hu.shape, np.int8) if classes is None else classes
    shape = tuple(coarse_size(n, step, out) for n, step, out in zip(hu.shape, spacing, WORK_MM, strict=True))
    return on_grid(Chest(hu, empty, (spacing[0], spacing[1], spacing[2])), shape, WORK_MM)
