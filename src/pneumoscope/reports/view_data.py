"""A scan, its masks and its surfaces, packed small enough for one HTML file.

Thin-slice scans have some 80 million voxels; a page carries at most 26 million. Blocks of voxels are averaged, first
along the finest axes, and densities rounded to one of 255 steps: fine where soft tissues differ, coarse in bone.
What was lost is said by `Packed.loss`, and stands on the page.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from pneumoscope.geometry import Grid
from pneumoscope.surfaces.files import LOOKS
from pneumoscope.surfaces.mesh import Mesh
from pneumoscope.volume import Mask, Volume

STEPS_HU = np.concatenate([np.arange(-1100, -160, 10), np.arange(-160, 300, 5), np.arange(300, 2001, 25)])
"""The 255 densities a page tells apart, ascending; what lies between goes to the nearest."""

VOXELS = 26_000_000  # Voxels a page holds at most, over all its scans
PACKED_BYTES = 16_000_000  # Bytes of a page's packed pictures at most; base64 makes a third more of them

TRIANGLES_SHOWN = 250_000
"""Triangles of a structure that a page draws at most; beyond, its smallest pieces are left out."""

BITS = {"lungs": 0, "infiltrate": 2, "truth": 4, "change": 6}
"""Where each mask's label (0 to 3) begins in the byte of a voxel."""

_LEVEL = 4

_SAMPLED = 8
"""Of so many slabs one says first whether a scan packs far too badly; the rest is then not packed in vain."""


@dataclass(frozen=True, eq=False)
class Packed:
    """A scan as a page carries it."""

    grid: Grid  # the coarser grid of the picture
    factors: tuple[int, int, int]  # voxels of the scan averaged into one along (i, j, k)
    picture: bytes  # zlib of uint8 (k, j, i), numbers into `STEPS_HU`
    masks: bytes  # zlib of uint8 (k, j, i), labels at the bits of `BITS`

    def loss(self) -> str:
        """What the picture lacks, in a sentence."""
        step = " \N{MULTIPLICATION SIGN} ".join(f"{s:.3g}" for s in self.grid.spacing_mm)
        blocks = " \N{MULTIPLICATION SIGN} ".join(map(str, self.factors))
        first = (
            f"Shown at {step} mm: blocks of {blocks} voxels of the scan are averaged"
            if max(self.factors) > 1
            else f"Shown at the scan's own {step} mm"
        )
        return (
            f"{first}; densities are rounded to 10 HU below \N{MINUS SIGN}160 HU, to 5 HU up to 300 HU and to 25 HU "
            "above, and cut at \N{MINUS SIGN}1100 and 2000 HU. Masks are shown where they fill half a block or more. "
            "All numbers come from the full scan and the full masks."
        )


def pack_scan(
    volume: Volume, masks: Mapping[str, Mask], *, share: float = 1.0, at_least: tuple[int, int, int] = (1, 1, 1)
) -> Packed:
    """Pack a scan and its masks; a scan that packs badly is made coarser until it fits.

    Args:
        masks: by the names of `BITS`; labels above 3 are shown as 3. Lungs are stored as 1 = right (or lung of no
            side) and 2 = left, by their names.
        share: part of the page's room that this scan may take; two scans on one page get half each.
        at_least: average no fewer voxels than this along (i, j, k).

    Raises:
        GeometryError: when a mask lies on another grid than the scan.
    """
    for name, mask in masks.items():
        volume.grid.require_same_space(mask.grid, f"the mask {name}")
    factors = _factors(volume.grid, int(VOXELS * share), at_least)
    most = int(PACKED_BYTES * share)
    while True:
        sample = _packed(_coded(volume.hu, factors, every=_SAMPLED), None)
        assert sample is not None
        picture = _packed(_coded(volume.hu, factors), most) if len(sample) * _SAMPLED < 1.2 * most else None
        if picture is not None:
            break
        factors = _coarser(volume.grid, factors)
    shape = [-(-n // f) for n, f in zip(volume.grid.shape, factors, strict=True)]
    affine = volume.grid.affine.copy()
    affine[:3, :3] *= factors
    affine[:3, 3] = volume.grid.world((np.asarray(factors) - 1) / 2)
    labels = _packed(_labelled(masks, volume.grid, factors), None)
    assert labels is not None
    return Packed(Grid(shape, affine), factors, picture, labels)


def _factors(grid: Grid, voxels: int, factors: tuple[int, int, int]) -> tuple[int, int, int]:
    while np.prod([-(-n // f) for n, f in zip(grid.shape, factors, strict=True)]) > voxels:
        factors = _coarser(grid, factors)
    return factors


def _coarser(grid: Grid, factors: tuple[int, int, int]) -> tuple[int, int, int]:
    """One voxel more along the axes whose blocks are finest (within a tenth)."""
    steps = np.asarray(grid.spacing_mm) * factors
    finest = steps <= 1.1 * steps[np.asarray(grid.shape) > factors].min(initial=np.inf)
    i, j, k = (int(f) + int(more) for f, more in zip(factors, finest, strict=True))
    return i, j, k


def _slabs(shape: tuple[int, ...], factors: tuple[int, int, int]) -> Iterator[slice]:
    step = factors[2] * max(1, 16 // factors[2])
    for start in range(0, shape[2], step):
        yield slice(start, start + step)


def _blocks(slab: NDArray[np.generic], factors: tuple[int, int, int]) -> NDArray[np.float32]:
    """Means over blocks; the last block of an axis repeats the scan's last voxel to be whole."""
    mean = slab.astype(np.float32)
    for axis, factor in enumerate(factors):
        if factor == 1:
            continue
        missing = -mean.shape[axis] % factor
        if missing:
            mean = np.pad(mean, [(0, missing * (a == axis)) for a in range(3)], mode="edge")
        along = np.moveaxis(mean, axis, 0)
        total = along[::factor].copy()
        for first in range(1, factor):
            total += along[first::factor]
        mean = np.moveaxis(total / np.float32(factor), 0, axis)
    return mean


def _coded(hu: NDArray[np.float32], factors: tuple[int, int, int], every: int = 1) -> Iterator[bytes]:
    """Bytes of the picture, some axial slices at a time; of every n-th of these slabs, the middle one of the n."""
    low, high = int(STEPS_HU[0]), int(STEPS_HU[-1])
    nearest = np.interp(np.arange(low, high + 1), STEPS_HU, np.arange(len(STEPS_HU))).round().astype(np.uint8)
    for part in islice(_slabs(hu.shape, factors), every // 2, None, every):
        mean = _blocks(hu[:, :, part], factors)
        whole = np.clip(np.rint(mean), low, high).astype(np.int16) - low
        yield nearest[whole].tobytes(order="F")


def _labelled(masks: Mapping[str, Mask], grid: Grid, factors: tuple[int, int, int]) -> Iterator[bytes]:
    """Bytes of the masks: in each block the label that fills most, where marked voxels fill half of it or more."""
    tables = {name: _table(name, mask) for name, mask in masks.items()}
    for part in _slabs(grid.shape, factors):
        size = [-(-n // f) for n, f in zip((*grid.shape[:2], len(range(*part.indices(grid.shape[2])))), factors)]  # noqa: B905
        packed = np.zeros(size, np.uint8)
        for name, mask in masks.items():
            labels = tables[name][mask.labels[:, :, part]]
            present = [label for label in (1, 2, 3) if (labels == label).any()]
            if not present:
                continue
            shares = [_blocks(labels == label, factors) for label in present]
            most = np.asarray(present, np.uint8)[np.argmax(shares, axis=0)]
            packed |= np.where(sum(shares) >= 0.5, most, 0).astype(np.uint8) << BITS[name]
        yield packed.tobytes(order="F")


def _table(name: str, mask: Mask) -> NDArray[np.uint8]:
    """For each of the 256 labels what the page stores, 0 to 3."""
    table = np.minimum(np.arange(256), 3).astype(np.uint8)
    if name == "lungs":
        sided = "right lung" in mask.names.values() or "left lung" in mask.names.values()
        table[1:] = 0 if sided else 1
        for label, title in mask.names.items():
            if sided and title in ("right lung", "left lung"):
                table[label] = 1 if title == "right lung" else 2
    return table


def _packed(parts: Iterator[bytes], limit: int | None) -> bytes | None:
    """zlib of all parts; None as soon as it grows beyond `limit`."""
    press = zlib.compressobj(_LEVEL)
    out, size = [], 0
    for part in chain(parts, [None]):  # None: the end
        piece = press.flush() if part is None else press.compress(part)
        out.append(piece)
        size += len(piece)
        if limit is not None and size > limit:
            return None
    return b"".join(out)


@dataclass(frozen=True, eq=False)
class PackedMesh:
    """A surface as a page carries it."""

    name: str  # of `structures.LOOKS`
    low_mm: tuple[float, ...]  # the lower corner of its box
    size_mm: tuple[float, ...]  # the sides of its box
    vertices: bytes  # zlib of uint16 (n, 3), 0 to 65535 over the box
    triangles: bytes  # zlib of uint32 (m, 3)
    left_out_ml: float  # volume of the small pieces that are not drawn

    def facts(self) -> dict[str, object]:
        """What the page's script needs beside the two payloads."""
        look = LOOKS[self.name]
        return {
            "name": self.name,
            "title": look.title,
            "colour": list(look.rgb),
            "opacity": look.opacity,
            "low": list(self.low_mm),
            "size": list(self.size_mm),
        }


def pack_mesh(name: str, mesh: Mesh) -> PackedMesh:
    """Pack a surface; vertices keep a 65535th of its box, less than 0.01 mm in a chest."""
    shown, left_out_ml = _largest_pieces(mesh, TRIANGLES_SHOWN)
    low, high = shown.vertices_mm.min(axis=0), shown.vertices_mm.max(axis=0)
    size = np.maximum(high - low, 1e-3)
    whole = np.rint((shown.vertices_mm - low) / size * 65535).astype("<u2")
    return PackedMesh(
        name,
        tuple(map(float, low)),
        tuple(map(float, size)),
        zlib.compress(whole.tobytes(), _LEVEL),
        zlib.compress(shown.triangles.astype("<u4").tobytes(), _LEVEL),
        left_out_ml,
    )


def _largest_pieces(mesh: Mesh, triangles: int) -> tuple[Mesh, float]:
    if len(mesh.triangles) <= triangles:
        return mesh, 0.0
    pieces = mesh.pieces()[mesh.triangles[:, 0]]
    counts = np.bincount(pieces)
    order = np.argsort(-counts, kind="stable")
    room = np.cumsum(counts[order]) <= triangles
    room[0] = True  # one piece is always drawn
    kept = np.isin(pieces, order[room])
    used, corners = np.unique(mesh.triangles[kept], return_inverse=True)
    shown = Mesh(mesh.vertices_mm[used], corners.reshape(-1, 3).astype(np.int32))
    return shown, mesh.volume_ml - shown.volume_ml


def text_of(payload: bytes) -> str:
    """Base64, as it stands in the page."""
    return base64.b64encode(payload).decode("ascii")
