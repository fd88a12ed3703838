"""Radiographs of nobody: the class is a stripe (or is not there at all), the source a mark in a corner.

`write_sets` makes the folders of all four sets in the layouts of the real ones, small enough for seconds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pneumoscope.recipes.papers.katsamenis_2020 import chest_xray
from pneumoscope.recipes.settings import with_overrides
from pneumoscope.recipes.xray import XrayExperiment

SIDE = 72
"""Rows and columns; pictures below 64 are refused."""

STRIPES = {"normal": 0.3, "bacterial": 0.5, "viral": 0.6, "covid19": 0.7}
MARKS = {"kermany": 0, "cohen": 1, "hannover": 2, "nih": 3}
"""Which corner each source marks."""


SMALL = (
    "data.per_class_1=20,20,20",
    "training.repeats=1",
    "training.max_epochs=2",
    "training.precision=fp32",
    "pictures.side=24",
    "network.features=2,4",
    "scoring.interval_resamples=10",
    "scoring.timed_pictures=1",
    "honest.penalties=0.1",
    "honest.networks=border",
    "honest.held_out_networks=false",
)


def small_xray(*more: str) -> XrayExperiment:
    """The paper's study in seconds."""
    return with_overrides(chest_xray(), [*SMALL, *more])


def picture(
    rng: np.random.Generator, label: str, source: str, *, stripe: bool = True, mark: bool = True
) -> Image.Image:
    """A noisy chest: a stripe in the middle box for the class, a bright corner for the source."""
    pixels = rng.integers(60, 120, (SIDE, SIDE)).astype(np.uint8)
    if stripe and label in STRIPES:
        top = int(STRIPES[label] * SIDE)
        pixels[top : top + 6, SIDE // 4 : -SIDE // 4] += 90
    if mark:
        n, corner = SIDE // 9, MARKS[source]
        rows = slice(0, n) if corner < 2 else slice(-n, None)
        columns = slice(0, n) if corner % 2 == 0 else slice(-n, None)
        pixels[rows, columns] = 255
    return Image.fromarray(pixels)


def write_sets(
    root: Path, *, children: int = 16, covid: int = 10, adults: int = 12, stripe: bool = True, mark: bool = True
) -> dict[str, Path]:
    """So many patients per class (children), per source (covid) and per finding (adults), two pictures each.

    Returns:
        Folder by dataset name, as `run_study` takes them.
    """
    rng = np.random.default_rng(0)

    def save(path: Path, label: str, source: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(rng, label, source, stripe=stripe, mark=mark).save(path)

    chest = root / "kermany" / "chest_xray" / "train"
    for n in range(children):
        for m in range(2):
            save(chest / "NORMAL" / f"IM-{n:04d}-{m:04d}.png", "normal", "kermany")
            save(chest / "PNEUMONIA" / f"person{n}_bacteria_{m}.png", "bacterial", "kermany")
            save(chest / "PNEUMONIA" / f"person{100 + n}_virus_{m}.png", "viral", "kermany")
    tables = {
        "cohen": "patientid,finding,view,modality,folder,filename\n",
        "hannover": "image_id,patient_id,modality,projection\n",
    }
    for n in range(covid):
        for m in range(2):
            save(root / "cohen" / "images" / f"c{n}_{m}.png", "covid19", "cohen")
            tables["cohen"] += f"{n},Pneumonia/Viral/COVID-19,PA,X-ray,images,c{n}_{m}.png\n"
            save(root / "hannover" / "png" / f"h{n}_{m}.png", "covid19", "hannover")
            tables["hannover"] += f"h{n}_{m},p{n},CR,AP\n"
    for name, file in (("cohen", "metadata.csv"), ("hannover", "data.csv")):
        if covid:
            (root / name / file).write_text(tables[name])
    for n in range(adults):
        for m in range(2):
            save(root / "nih" / "no-finding" / f"{n:08d}_{m:03d}.png", "normal", "nih")
            save(root / "nih" / "pneumonia" / f"{100 + n:08d}_{m:03d}.png", "pneumonia", "nih")
    return {name: root / name for name in MARKS if (root / name).is_dir()}
