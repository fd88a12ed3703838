"""Pictures that no radiograph classifier should answer, made from what is at hand: CT, photographs, drawings, screens.

Each function gives pictures (rows, columns) in [0, 1]. `first_kinds` were looked at while decision 0017 was made;
`fresh_kinds` were made afterwards, for the report alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from pneumoscope.errors import PneumoscopeError
from pneumoscope.io.formats.radiograph import read_radiograph
from pneumoscope.io.read import read_volume
from pneumoscope.volume import Volume

Picture = np.ndarray
WINDOWS_HU = {"lung": (-1350, 150), "soft tissue": (-160, 240)}


def some(data: Path, pattern: str, each: int, seed: int = 4) -> list[Picture]:
    """Readable pictures below a folder, drawn at random."""
    paths = sorted(p for p in data.glob(pattern) if p.is_file() and p.suffix != ".csv")
    found = []
    for i in np.random.default_rng(seed).permutation(len(paths))[:each]:
        try:
            found.append(read_radiograph(paths[int(i)]).pixels)
        except PneumoscopeError as problem:
            print(f"left out: {problem}")
    return found


def scans(data: Path) -> list[Volume]:
    """The whole CTs at hand."""
    folder = data / "ct-volumes"
    patients = sorted(p for p in (folder / "covid-ct-md").glob("*") if p.is_dir())
    paths = [folder / "nsclc-LUNG1-001", *sorted((folder / "imlab").glob("id???.nii.gz")), *patients]
    return [read_volume(path) for path in paths if path.exists()]


def first_kinds(data: Path, chests: list[Picture], each: int) -> dict[str, list[Picture]]:
    """What decision 0017 reports on."""
    rng = np.random.default_rng(4)
    return {
        "CT slices, coronacases": some(data, "ct-slices/coronacases/*/ct/*.png", each),
        "CT slices, radiopaedia (spine up)": some(data, "ct-slices/radiopaedia/*/ct/*.png", each),
        "CT slices, medseg": some(data, "ct-slices/medseg/ct/*.*", each),
        "noise": [rng.random((200, 200)).astype(np.float32) for _ in range(each)],
        "drawings": drawings(rng, 60),
        "smooth noise": smooth(rng, 60),
        "X-ray turned by 90 degrees": [np.rot90(c).copy() for c in chests],
        "X-ray turned by 180 degrees": [np.rot90(c, 2).copy() for c in chests],
        "X-ray turned by 270 degrees": [np.rot90(c, 3).copy() for c in chests],
        "X-ray mirrored top to bottom": [c[::-1].copy() for c in chests],
        "X-ray, black and white exchanged": [1 - c for c in chests],
        "X-ray mirrored left to right (not looked for)": [c[:, ::-1].copy() for c in chests],
        "X-ray, upper left quarter only": [c[: len(c) // 2, : c.shape[1] // 2].copy() for c in chests],
    }


def fresh_kinds(data: Path, chests: list[Picture], each: int) -> dict[str, list[Picture]]:
    """What no limit and no method was chosen on."""
    rng = np.random.default_rng(5)
    volumes = scans(data)
    return {
        "X-ray, lateral": some(data, "xray/lateral/*.*", each),
        "CT, axial, lung window": [p for v in volumes for p in planes(v, 2, "lung")],
        "CT, axial, soft tissue": [p for v in volumes for p in planes(v, 2, "soft tissue")],
        "CT, coronal, lung window": [p for v in volumes for p in planes(v, 1, "lung")],
        "CT, coronal, soft tissue": [p for v in volumes for p in planes(v, 1, "soft tissue")],
        "CT, sagittal, lung window": [p for v in volumes for p in planes(v, 0, "lung")],
        "CT, sagittal, soft tissue": [p for v in volumes for p in planes(v, 0, "soft tissue")],
        "lateral X-ray computed from CT": [p for v in volumes for p in projections(v, range(75, 106, 3))],
        "oblique X-ray computed from CT": [p for v in volumes for p in projections(v, (35, 45, 55, 125, 135, 145))],
        "frontal X-ray computed from CT (borderline)": [p for v in volumes for p in projections(v, range(-9, 10, 3))],
        "photographs, scans, micrographs": photographs(),
        "parts of photographs": parts_of(photographs(), rng, each),
        "pages of text": [page_of_text(rng) for _ in range(60)],
        "screens with windows and curves": [screen(rng) for _ in range(60)],
        "X-ray turned by 45 degrees": [_turned(c, 45) for c in chests],
        "two X-rays side by side": [np.hstack([_sized(c), _sized(c)]) for c in chests],
        "X-ray, lower half only": [c[len(c) // 2 :].copy() for c in chests],
        "X-ray in the corner of a page": [_on_page(c) for c in chests],
    }


def planes(scan: Volume, axis: int, window: str, step_mm: float = 12.0) -> Iterator[Picture]:
    """Slices across an axis of RAS+ (0 sagittal, 1 coronal, 2 axial), head up or front up, pixels square."""
    low, high = WINDOWS_HU[window]
    mm = scan.spacing_mm
    size = scan.hu.shape[axis]
    across = [a for a in range(3) if a != axis]
    for at in range(round(0.15 * size), round(0.85 * size), max(1, round(step_mm / mm[axis]))):
        plane = np.take(scan.hu, at, axis=axis).T[::-1, ::-1].astype(np.float32)
        grey = np.clip((plane - low) / (high - low), 0, 1)
        rows = max(64, round(grey.shape[0] * mm[across[1]] / mm[across[0]]))
        picture = cv2.resize(grey, (max(64, grey.shape[1]), rows))
        if float(np.ptp(picture)) > 0.1:
            yield picture


def projections(scan: Volume, angles: range | tuple[int, ...]) -> Iterator[Picture]:
    """Radiographs computed as sums of attenuation, seen from an angle to the front (0 frontal, 90 lateral), cropped."""
    density = np.clip(scan.hu / 1000 + 1, 0, None).astype(np.float32)  # (x, y, z), water 1
    mm, centre = scan.spacing_mm, (density.shape[1] / 2, density.shape[0] / 2)
    for angle in angles:
        scale = cv2.getRotationMatrix2D(centre, angle, 1.0)
        sums = np.stack(
            [
                cv2.warpAffine(np.ascontiguousarray(density[..., k]), scale, density.shape[1::-1]).sum(axis=1)
                for k in range(density.shape[2])
            ]
        )  # (z, x)
        upright = sums[::-1, ::-1]
        body = np.flatnonzero(upright.max(axis=0) > 0.15 * upright.max())
        upright = upright[:, body[0] : body[-1] + 1]
        tall = max(64, round(upright.shape[0] * mm[2] / mm[0]))
        picture = cv2.resize(np.ascontiguousarray(upright), (max(64, upright.shape[1]), tall))
        low, high = np.percentile(picture, (1, 99.5))
        yield np.clip((picture - low) / (high - low), 0, 1).astype(np.float32)


def photographs() -> list[Picture]:
    """Those that scikit-image and matplotlib bring along, grey."""
    import matplotlib as mpl
    import skimage

    folders = [
        Path(skimage.__file__).parent / "data",
        Path(mpl.__file__).parent / "mpl-data" / "sample_data",
    ]
    found = []
    for path in sorted(
        p for folder in folders for p in folder.iterdir() if p.suffix.lower() in (".png", ".jpg", ".tif")
    ):
        try:
            found.append(read_radiograph(path).pixels)
        except PneumoscopeError:  # a multi-page or tiny sample
            continue
    return found


def parts_of(pictures: list[Picture], rng: np.random.Generator, n: int) -> list[Picture]:
    """Random squares of pictures."""
    found: list[Picture] = []
    while len(found) < n:
        picture = pictures[int(rng.integers(len(pictures)))]
        side = int(min(picture.shape) * rng.uniform(0.35, 0.9))
        top, left = (int(rng.integers(0, size - side + 1)) for size in picture.shape)
        part = picture[top : top + side, left : left + side]
        if side >= 64 and float(np.ptp(part)) > 0.1:
            found.append(part.copy())
    return found


def page_of_text(rng: np.random.Generator) -> Picture:
    """Dark words on white."""
    page = np.full((360, 280), 255, np.uint8)
    for row in range(30, 340, int(rng.integers(12, 22))):
        words = " ".join("".join(rng.choice(list("etaoinshrdlu"), rng.integers(2, 9))) for _ in range(7))
        cv2.putText(page, words, (20, row), cv2.FONT_HERSHEY_SIMPLEX, float(rng.uniform(0.3, 0.5)), 20, 1, cv2.LINE_AA)
    return page.astype(np.float32) / 255


def screen(rng: np.random.Generator) -> Picture:
    """Windows with bars, curves and words."""
    view = np.full((300, 420), int(rng.integers(0, 256)), np.uint8)
    for _ in range(int(rng.integers(2, 6))):
        top, left = int(rng.integers(0, 220)), int(rng.integers(0, 300))
        low, right = top + int(rng.integers(50, 160)), left + int(rng.integers(80, 220))
        cv2.rectangle(view, (left, top), (right, low), int(rng.integers(0, 256)), -1)
        cv2.rectangle(view, (left, top), (right, top + 12), int(rng.integers(0, 256)), -1)
        x = np.linspace(left, right, 50)
        y = (top + low) / 2 + rng.normal(0, 3, 50).cumsum()
        cv2.polylines(view, [np.stack([x, y], 1).astype(np.int32)], False, int(rng.integers(0, 256)), 1, cv2.LINE_AA)
        cv2.putText(view, "report", (left + 4, top + 30), cv2.FONT_HERSHEY_SIMPLEX, 0.4, int(rng.integers(0, 256)), 1)
    return view.astype(np.float32) / 255


def drawings(rng: np.random.Generator, n: int) -> list[Picture]:
    """Plots in the way photographs come: curves, dots, chequers, contours, as matplotlib draws them."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    pictures = []
    for number in range(n):
        figure = plt.figure(figsize=(3, 3), dpi=64)
        axes = figure.add_subplot()
        if number % 4 == 0:
            axes.plot(rng.normal(size=50).cumsum())
        elif number % 4 == 1:
            axes.imshow(rng.random((8, 8)), cmap="gray")
        elif number % 4 == 2:
            axes.scatter(*rng.random((2, 60)), s=rng.uniform(5, 400, 60), c=rng.random(60), cmap="gray")
            axes.axis("off")
        else:
            axes.contourf(cv2.GaussianBlur(rng.normal(size=(40, 40)), (0, 0), 5), 20, cmap="gray")
            axes.axis("off")
        figure.canvas.draw()
        pictures.append(np.asarray(figure.canvas.buffer_rgba())[..., :3].mean(axis=2).astype(np.float32) / 255)
        plt.close(figure)
    return pictures


def smooth(rng: np.random.Generator, n: int) -> list[Picture]:
    """Clouds of every size."""
    made = [cv2.GaussianBlur(rng.normal(size=(96, 96)), (0, 0), s) for s in rng.uniform(1, 14, n)]
    return [((m - m.min()) / np.ptp(m)).astype(np.float32) for m in made]


def _turned(picture: Picture, angle: float) -> Picture:
    rows, columns = picture.shape
    move = cv2.getRotationMatrix2D((columns / 2, rows / 2), angle, 1.0)
    return cv2.warpAffine(picture, move, (columns, rows)).astype(np.float32)


def _sized(picture: Picture) -> Picture:
    return cv2.resize(picture, (256, 256), interpolation=cv2.INTER_AREA)


def _on_page(picture: Picture) -> Picture:
    page = np.ones((400, 400), np.float32)
    page[20:220, 30:230] = cv2.resize(picture, (200, 200), interpolation=cv2.INTER_AREA)
    return page
