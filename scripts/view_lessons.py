"""What the view classifier learns from: films, radiographs computed from CT at any angle, and what is neither.

A frontal film and one computed from CT differ in texture, a lateral one is only computed. So that texture decides
nothing, frontal views are computed as well, parts and turned copies of real films are ``other``, both kinds pass the
same `as_film`, and that mixes the spectrum of amplitudes of a real film into whatever it is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pneumoscope.volume import Volume

Picture = NDArray[np.float32]
"""(rows, columns) in [0, 1]."""

STEP_MM = 4.0
FRONTAL, OBLIQUE, LATERAL = (-12.0, 12.0), (38.0, 60.0), (60.0, 120.0)
"""Degrees to the front. What lies between 12 and 38 is not taught."""

WINDOWS_HU = ((-1350, 150), (-160, 240), (-1000, 400))


@dataclass(frozen=True, eq=False)
class Body:
    """A scan to be seen through: Hounsfield units (x, y, z) in RAS+, air outside the patient, voxels of `STEP_MM`."""

    hu: NDArray[np.float32]

    @classmethod
    def of(cls, scan: Volume) -> Body:
        """The largest piece denser than -400 HU with what it encloses, on a square of columns and rows."""
        steps = np.maximum(1, np.floor(STEP_MM / np.array(scan.spacing_mm)).astype(int))
        coarse = scan.hu[:: steps[0], :: steps[1], :: steps[2]]
        hu = ndimage.zoom(np.clip(coarse, -1024, 2000), np.array(scan.spacing_mm) * steps / STEP_MM, order=1)
        pieces, _ = ndimage.label(ndimage.binary_opening(hu > -400))
        body = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
        inside = np.stack([ndimage.binary_fill_holes(body[..., k]) for k in range(body.shape[2])], axis=2)
        side = max(hu.shape[:2])
        margins = [((side - n) // 2, side - n - (side - n) // 2) for n in hu.shape[:2]]
        return cls(np.pad(np.where(inside, hu, -1024), (*margins, (0, 0)), constant_values=-1024).astype(np.float32))

    @cached_property
    def density(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Attenuation relative to water, and what bone adds to it at a softer beam, each (z, x, y)."""
        hu = np.ascontiguousarray(np.moveaxis(self.hu, 2, 0))
        return np.clip(1 + hu / 1000, 0, None), np.clip(hu - 150, 0, None) / 1000

    def seen_from(self, angle: float, rng: np.random.Generator) -> Picture:
        """The radiograph from an angle (0 frontal, 90 lateral) of a patient of slightly other proportions."""
        soft, bone = self.density
        side, density = soft.shape[1], soft + np.float32(rng.uniform(0, 1.5)) * bone
        move = cv2.getRotationMatrix2D((side / 2, side / 2), angle, 1.0)
        move[:2, :2] = move[:2, :2] @ np.diag(rng.uniform(0.85, 1.2, 2))
        move[:, 2] += side / 2 - move @ np.array([side / 2, side / 2, 1.0])
        sums = np.stack([cv2.warpAffine(plane, move, (side, side)).sum(axis=1) for plane in density])
        if rng.random() < 0.5:  # consolidation, or the other arm
            rows, columns = np.mgrid[0 : len(sums), 0:side]
            for _ in range(int(rng.integers(1, 4))):
                at, size = rng.uniform(0.2, 0.8, 2) * sums.shape, rng.uniform(4, 16, 2)
                blob = np.exp(-(((rows - at[0]) / size[0]) ** 2) - ((columns - at[1]) / size[1]) ** 2)
                sums += rng.uniform(0.02, 0.2) * sums.max() * blob
        columns = np.flatnonzero(sums.max(axis=0) > 0.1 * sums.max())
        film = np.ascontiguousarray(sums[::-1, columns[0] : columns[-1] + 1][:, ::-1], np.float32)
        rows_now = max(40, round(len(film) * rng.uniform(0.9, 1.25)))
        film = cv2.resize(film, (max(40, film.shape[1]), rows_now), interpolation=cv2.INTER_CUBIC)
        if rng.random() < 0.5:
            film = _with_arms(film, rng)
        low, high = np.percentile(film, (rng.uniform(0, 8), rng.uniform(94, 100)))
        return np.clip((film - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)

    def slices(self, rng: np.random.Generator, n: int) -> Iterator[Picture]:
        """Planes across any axis in any of `WINDOWS_HU`, head or front up, seldom down."""
        for _ in range(n):
            axis = int(rng.integers(3))
            size = self.hu.shape[axis]
            plane = np.take(self.hu, int(rng.integers(size // 5, size - size // 5)), axis=axis).T[::-1, ::-1]
            low, high = WINDOWS_HU[int(rng.integers(len(WINDOWS_HU)))]
            grey = np.clip((plane - low) / (high - low), 0, 1).astype(np.float32)
            filled = [np.flatnonzero(grey.max(axis=a) > 0.2) for a in (1, 0)]
            if min(map(len, filled)) > 20:
                grey = grey[filled[0][0] : filled[0][-1] + 1, filled[1][0] : filled[1][-1] + 1]
            yield grey[::-1].copy() if rng.random() < 0.1 else grey.copy()


def _with_arms(film: Picture, rng: np.random.Generator) -> Picture:
    """One or two limbs across the upper half, as dense as a part of the chest."""
    rows, columns = film.shape
    arm = np.zeros_like(film)
    for _ in range(int(rng.integers(1, 3))):
        start = (int(rng.uniform(-0.1, 1.1) * columns), int(rng.uniform(-0.1, 0.3) * rows))
        end = (int(rng.uniform(-0.1, 1.1) * columns), int(rng.uniform(0, 0.8) * rows))
        cv2.line(arm, start, end, float(rng.uniform(0.1, 0.45) * film.max()), int(rng.uniform(0.08, 0.25) * columns))
    return film + cv2.GaussianBlur(arm, (0, 0), float(rng.uniform(1, 4)))


def as_film(picture: Picture, rng: np.random.Generator, film: Picture) -> Picture:
    """The picture with another crop, grey curve, texture, resolution, border, marker and compression.

    Args:
        picture: any.
        rng: decides.
        film: a real one, whose spectrum of amplitudes is mixed in: of fine structure up to 80 %, of coarse up to 15 %.
    """
    rows, columns = picture.shape
    top, left = (int(rng.uniform(0, 0.14) * n) for n in (rows, columns))
    low, right = (n - int(rng.uniform(0, 0.14) * n) for n in (rows, columns))
    side = 128
    cut = cv2.resize(np.ascontiguousarray(picture[top:low, left:right]), (side, side), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.5:
        cut = _mixed(cut, cv2.resize(film, (side, side), interpolation=cv2.INTER_AREA), rng)
    if rng.random() < 0.5:
        slope, middle = rng.uniform(3, 9), rng.uniform(0.3, 0.6)
        cut = 1 / (1 + np.exp(-slope * (cut - middle)))
    cut = np.clip(cut, 0, 1) ** rng.uniform(0.5, 1.8)
    coarse = int(rng.integers(64, side))
    cut = cv2.resize(cut.astype(np.float32), (coarse, coarse), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.4:
        cut = cv2.GaussianBlur(cut, (0, 0), float(rng.uniform(0.4, 1.6)))
    cut = (cut - cut.min()) / max(float(np.ptp(cut)), 1e-6) * rng.uniform(0.7, 1) + rng.uniform(0, 0.1)
    cut = np.clip(cut + rng.normal(0, rng.uniform(0, 0.03), cut.shape), 0, 1).astype(np.float32)
    grey = np.rint(255 * cut).astype(np.uint8)
    if rng.random() < 0.4:
        edges = (rng.uniform(0, 0.12, 4) * coarse * (rng.random(4) < 0.5)).astype(int)
        grey = cv2.copyMakeBorder(grey, *map(int, edges), cv2.BORDER_CONSTANT, value=int(rng.choice([0, 0, 255])))
    if rng.random() < 0.5:
        words, at = str(rng.choice(["L", "R", "PA", "AP", "ERECT", "LAT"])), rng.uniform(0.05, 0.9, 2) * grey.shape
        cv2.putText(
            grey, words, (int(at[1]), int(at[0])), cv2.FONT_HERSHEY_SIMPLEX, float(rng.uniform(0.3, 0.7)), 255, 1
        )
    packed = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 96))])[1]
    return (cv2.imdecode(packed, cv2.IMREAD_GRAYSCALE) / 255).astype(np.float32)


def _mixed(picture: Picture, film: Picture, rng: np.random.Generator) -> Picture:
    """Phases of the picture; amplitudes between its own and the film's (Yang and Soatto 2020, CVPR)."""
    ours, theirs = np.fft.rfft2(picture), np.fft.rfft2(film)
    across, down = np.fft.rfftfreq(picture.shape[1]), np.fft.fftfreq(picture.shape[0])
    fine = np.hypot(down[:, None], across[None]) > rng.uniform(0.02, 0.12)
    share = np.where(fine, rng.uniform(0, 0.8), rng.uniform(0, 0.15))
    amplitude = (1 - share) * np.abs(ours) + share * np.abs(theirs)
    return np.asarray(np.fft.irfft2(amplitude * np.exp(1j * np.angle(ours)), picture.shape), np.float32)


def torn(film: Picture, rng: np.random.Generator) -> Picture:
    """What a real film is no longer frontal by: half of it, turned, twice, small on a page."""
    rows, columns = film.shape
    kind = int(rng.integers(6))
    if kind <= 1:
        start = int(rng.uniform(0, 0.52) * columns)
        return film[:, start : start + max(32, int(rng.uniform(0.38, 0.48) * columns))].copy()
    if kind == 2:
        start = int(rng.choice([0, rows - rows // 2]))
        return film[start : start + rows // 2, : int(rng.choice([columns, columns // 2]))].copy()
    if kind == 3:
        move = cv2.getRotationMatrix2D((columns / 2, rows / 2), float(rng.uniform(35, 325)), rng.uniform(0.7, 1.1))
        return cv2.warpAffine(film, move, (columns, rows)).astype(np.float32)
    if kind == 4:
        return np.hstack([cv2.resize(film, (160, 160)), cv2.resize(film, (160, 160))])
    page = np.full((320, 320), rng.choice([0, 1, rng.random()]), np.float32)
    top, left = (int(v) for v in rng.integers(0, 170, 2))
    page[top : top + 150, left : left + 150] = cv2.resize(film, (150, 150), interpolation=cv2.INTER_AREA)
    return page


def drawn(rng: np.random.Generator) -> Picture:
    """Noise, clouds, lines of text, or boxes and curves."""
    kind = int(rng.integers(4))
    if kind == 0:
        return rng.random((160, 160), np.float32)
    if kind == 1:
        cloud = cv2.GaussianBlur(rng.normal(size=(160, 160)), (0, 0), float(rng.uniform(2, 25)))
        return ((cloud - cloud.min()) / np.ptp(cloud)).astype(np.float32)
    page = np.full((240, 200), int(rng.choice([0, 255])), np.uint8)
    for row in range(15, 240, int(rng.integers(10, 40))):
        if kind == 2:
            words = " ".join("".join(rng.choice(list("aeinorst"), rng.integers(2, 9))) for _ in range(6))
            cv2.putText(page, words, (8, row), cv2.FONT_HERSHEY_SIMPLEX, 0.35, 128, 1, cv2.LINE_AA)
        else:
            ends = [tuple(int(v) for v in rng.integers(0, 240, 2)) for _ in range(2)]
            shade, thick = int(rng.integers(0, 256)), int(rng.choice([-1, 1, 3]))
            (cv2.rectangle if rng.random() < 0.5 else cv2.line)(page, *ends, shade, max(1, thick))
    return (page / 255).astype(np.float32)


def computed(
    bodies: list[Body], degrees: tuple[float, float], n: int, rng: np.random.Generator, films: list[Picture] | None
) -> list[Picture]:
    """Radiographs from angles to the front or the back, either side; as films where real ones are given."""
    found = []
    for _ in range(n):
        angle = float(rng.uniform(*degrees)) * int(rng.choice([-1, 1])) + 180 * int(rng.integers(2))
        picture = bodies[int(rng.integers(len(bodies)))].seen_from(angle, rng)
        found.append(picture if films is None else as_film(picture, rng, films[int(rng.integers(len(films)))]))
    return found


def scans_of(folder: Path, names: tuple[str, ...]) -> list[Body]:
    """Whole CTs below a folder, by name."""
    from pneumoscope.io.read import read_volume

    return [Body.of(read_volume(folder / name)) for name in names]


def synthetic(n: int) -> list[Body]:
    """Synthetic chests of the three sites, with arms down and lesions."""
    from pneumoscope.datasets.phantom.folder import make_phantom

    return [Body.of(make_phantom("ABC"[i % 3], i, seed=14, size="small").volume) for i in range(n)]
