"""Small scans and raw NIfTI bytes with any header field bent, for the tests of the border."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from pneumoscope.geometry import Grid

AFFINE = np.array([[-0.5, 0, 0, 12], [0, -0.75, 0, 20], [0, 0, 1.25, -300], [0, 0, 0, 1.0]])
"""Exact in float32; stored left and back, as most converters do."""


def chest(shape: tuple[int, int, int] = (24, 20, 16), *, noise: float = 12.0, seed: int = 0) -> np.ndarray:
    """(i, j, k) int16 HU: air around a body of soft tissue, two lungs with vessels in it, one vertebra."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    hu = np.full(shape, -1000.0)
    hu[(x / 0.95) ** 2 + (y / 0.8) ** 2 < 1] = 40
    lungs = ((np.abs(x) - 0.45) / 0.33) ** 2 + (y / 0.55) ** 2 + (z / 0.9) ** 2 < 1
    hu[lungs] = -850
    hu[lungs & (rng.random(shape) < 0.08)] = 20
    hu[(np.abs(x) < 0.12) & (y > 0.5) & (hu > 0)] = 400
    return np.rint(np.maximum(hu + rng.normal(0, noise, shape), -1020)).astype(np.int16)


def nifti_bytes(
    array: np.ndarray, affine: np.ndarray = AFFINE, *, kind: type = nib.Nifti1Image, **fields: Any
) -> bytes:
    """An uncompressed NIfTI file; `fields` overwrite header fields afterwards, whatever that breaks."""
    image = kind(array, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    raw = bytearray(image.to_bytes())
    size = 348 if kind is nib.Nifti1Image else 540
    dtype = nib.nifti1.header_dtype if size == 348 else nib.nifti2.header_dtype
    header = np.frombuffer(raw[:size], dtype).copy()
    for name, value in fields.items():
        header[name][0] = value
    raw[:size] = header.tobytes()
    return bytes(raw)


def save(path: Path, data: bytes) -> Path:
    """Write bytes, gzipped when the name says so."""
    path.write_bytes(gzip.compress(data, 1, mtime=0) if path.name.endswith(".gz") else data)
    return path


def scan_file(folder: Path, name: str = "scan.nii.gz", **fields: Any) -> Path:
    """A readable chest scan, or one with header fields bent."""
    return save(folder / name, nifti_bytes(chest(), **fields))


def grid_of(array: np.ndarray, affine: np.ndarray = AFFINE) -> Grid:
    return Grid(array.shape, affine)
