"""Dice of the shipped lung model on whole chest CTs, against their references, with time and memory.

    python benchmarks/lungs.py --data ../shared/data/ct-volumes

Reads `nsclc-LUNG1-001` (RTSTRUCT `Lung-Left`, `Lung-Right`; voxels of `GTV-1` are left out of the count) and every
`imlab/idNNN.nii.gz` with `-msk`. Beside the model stands a plain threshold: the two largest aerated pieces.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import cc3d
import cv2
import numpy as np
import pydicom
from numpy.typing import NDArray
from scipy import ndimage

from pneumoscope.inference.inputs import input_from_card
from pneumoscope.inference.lungs import find_lungs
from pneumoscope.io import read_mask, read_volume
from pneumoscope.metrics.overlap import count, dice
from pneumoscope.models.cards import find_model
from pneumoscope.models.weights import load_model
from pneumoscope.volume import Mask, Volume


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


def scans(data: Path) -> Iterator[tuple[str, Volume, dict[str, NDArray[np.bool_]], NDArray[np.bool_]]]:
    """Name, scan, reference masks by name, and the voxels that count."""
    folder = data / "nsclc-LUNG1-001"
    if folder.is_dir():
        volume = read_volume(folder / "image")
        drawn = contours(next((folder / "mask_rtstruct").iterdir()), volume)
        counted = ~drawn["GTV-1"]
        right, left = drawn["Lung-Right"], drawn["Lung-Left"]
        yield "nsclc-LUNG1-001", volume, {"right": right, "left": left, "both": right | left}, counted
    for path in sorted((data / "imlab").glob("id???.nii.gz")):
        volume = read_volume(path)
        mask = read_mask(path.with_name(path.name.replace(".nii.gz", "-msk.nii.gz")), threshold=127)
        yield f"imlab {path.name[:5]}", volume, {"both": mask.any}, np.ones(volume.grid.shape, bool)


def threshold_baseline(volume: Volume) -> NDArray[np.bool_]:
    """Air below -400 HU that does not reach the border in plane, the two largest pieces, holes closed per slice."""
    air = volume.hu < -400
    pieces = cc3d.connected_components(air, connectivity=6)
    edge = np.unique(
        np.concatenate([pieces[0].ravel(), pieces[-1].ravel(), pieces[:, 0].ravel(), pieces[:, -1].ravel()])
    )
    sizes = np.bincount(pieces.ravel())
    sizes[edge] = 0
    sizes[0] = 0
    keep = np.argsort(sizes)[-2:]
    lungs = np.isin(pieces, keep[sizes[keep] > 0.1 * sizes.max()])
    for k in range(lungs.shape[2]):
        lungs[:, :, k] = ndimage.binary_fill_holes(lungs[:, :, k])
    return lungs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="lungs")
    options = parser.parse_args()
    model, card = load_model(find_model(options.model))
    way = input_from_card(card)
    rows = {}
    for name, volume, reference, counted in scans(options.data):
        begun = time.perf_counter()
        found, findings = find_lungs(volume, model, way)
        seconds = time.perf_counter() - begun
        parts = {"right": found.of(1), "left": found.of(2), "both": found.any}
        rows[name] = {
            part: round(dice(count(parts[part] & counted, ref & counted)), 4) for part, ref in reference.items()
        }
        plain = threshold_baseline(volume)
        rows[name]["threshold_both"] = round(dice(count(plain & counted, reference["both"] & counted)), 4)
        rows[name]["seconds"] = round(seconds, 1)
        rows[name]["findings"] = [finding.code for finding in findings]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({"dice": rows, "peak_memory_mib": peak}, indent=2))


if __name__ == "__main__":
    main()
