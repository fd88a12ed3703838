"""Draw the real scans of docs/concepts/shipped-models.md: slices without and with what the shipped models find.

Run from the repository: ``python docs/images/whole_scans.py VOLUMES``, the folder with the scans of TCIA whose licences
allow pictures: `reduced/*.nii.gz` (CC BY) and `nsclc-LUNG1-001/image` (CC BY-NC).
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path

from PIL import Image

from pneumoscope.inference.segmenter import Segmenter
from pneumoscope.io.read import read_volume
from pneumoscope.reports.case import slices_png

WIDTH = 900


def main() -> None:
    """Draw all."""
    folder = Path(sys.argv[1])
    scans = {path.name.split(".")[0]: path for path in sorted((folder / "reduced").glob("*.nii.gz"))}
    segmenter = Segmenter()
    for name, path in {**scans, "LUNG1-001": folder / "nsclc-LUNG1-001" / "image"}.items():
        volume = read_volume(path)
        found = segmenter.run(volume)
        picture = Image.open(BytesIO(slices_png(volume, found.lungs, found.infiltrate, None))).convert("RGB")
        picture = picture.resize((WIDTH, WIDTH * picture.height // picture.width), Image.Resampling.LANCZOS)
        picture.save(Path(__file__).parent / f"scan-{name}.jpg", quality=80)


if __name__ == "__main__":
    main()
