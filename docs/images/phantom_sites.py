"""Draw docs/images/phantom-sites.png: an axial and a coronal slice of each synthetic site, the reader's outline in red.

Run from the repository: ``python docs/images/phantom_sites.py``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import binary_erosion

from pneumoscope.datasets.phantom import SITES, make_phantom
from pneumoscope.preprocess.slices import to_slices

PATIENTS = {"A": 6, "B": 9, "C": 0}
LUNG_WINDOW_HU = (-1250.0, 250.0)
TILE = (380, 300)
RED = (255, 70, 50)


def grey(hu: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The lung window as grey values."""
    low, high = LUNG_WINDOW_HU
    return (np.clip((hu - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def tile(hu: NDArray[np.float32], drawn: NDArray[np.bool_], size_mm: tuple[float, float], text: str) -> Image.Image:
    """One picture of 380 x 299 mm with the outline and a caption; (h, w) arrays that measure `size_mm`."""
    scale = TILE[0] / 380
    size = (round(size_mm[1] * scale), round(size_mm[0] * scale))
    picture = Image.fromarray(grey(hu)).resize(size, Image.Resampling.LANCZOS).convert("RGB")
    mask = np.asarray(Image.fromarray(drawn.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)) > 127
    array = np.asarray(picture).copy()
    array[mask & ~binary_erosion(mask)] = RED
    canvas = Image.new("RGB", TILE)
    canvas.paste(Image.fromarray(array), ((TILE[0] - size[0]) // 2, (TILE[1] - size[1]) // 2))
    pen = ImageDraw.Draw(canvas)
    pen.rectangle((0, 0, pen.textlength(text) + 12, 18), fill=(0, 0, 0))
    pen.text((6, 4), text, fill=(255, 255, 255))
    return canvas


def column(site: str) -> Image.Image:
    """Axial slice with the most infiltrate above a coronal slice through the middle of it."""
    scan = make_phantom(site, PATIENTS[site])
    assert scan.infiltrate is not None
    x_mm, y_mm, z_mm = scan.volume.spacing_mm
    hu, drawn = to_slices(scan.volume.hu), to_slices(scan.infiltrate.any)
    k = int(np.argmax(drawn.sum(axis=(1, 2))))
    row = int(np.argmax(drawn.sum(axis=(0, 2))[: int(0.62 * hu.shape[1])]))
    n, h, w = hu.shape
    about = f"site {site}: {SITES[site].title}"
    axial = tile(hu[k], drawn[k], (h * y_mm, w * x_mm), about)
    front = tile(hu[::-1, row], drawn[::-1, row], (n * z_mm, w * x_mm), f"{w} x {h} x {n}, {x_mm:.2f} x {z_mm:g} mm")
    both = Image.new("RGB", (TILE[0], 2 * TILE[1]))
    both.paste(axial, (0, 0))
    both.paste(front, (0, TILE[1]))
    return both


def main() -> None:
    """Write the picture beside this file."""
    columns = [column(site) for site in "ABC"]
    whole = Image.new("RGB", (TILE[0] * 3, TILE[1] * 2))
    for number, picture in enumerate(columns):
        whole.paste(picture, (TILE[0] * number, 0))
    few = Image.new("P", (1, 1))
    few.putpalette([value for step in range(52) for value in (step * 5,) * 3] + list(RED))
    small = whole.quantize(palette=few, dither=Image.Dither.NONE)
    small.save(Path(__file__).with_name("phantom-sites.png"), optimize=True)


if __name__ == "__main__":
    main()
