"""Draw docs/images/audit-findings.png: faults planted into synthetic scans, as the audit shows them.

Run from the repository: ``python docs/images/audit_findings.py``.
"""

from __future__ import annotations

import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "datasets"))

from defects import plant

from pneumoscope.datasets.audit.case import judge_case, read_raw
from pneumoscope.datasets.registry import read_dataset
from pneumoscope.reports.audit import finding_picture

SHOWN = ("speck", "no-lung-slice", "outside-lung", "in-bone", "swapped-sides", "mirrored-mask")
COLUMNS, CAPTION = 2, 36


def main() -> None:
    """Write the picture beside this file: of each kind in `SHOWN` the first finding."""
    tiles: dict[str, Image.Image] = {}
    with tempfile.TemporaryDirectory() as folder:
        plant(Path(folder), "A", size="small", untouched=0)
        for case in read_dataset("manifest", folder):
            raw = read_raw(case)
            for finding in judge_case(raw).findings:
                if finding.kind in SHOWN and finding.kind not in tiles:
                    lungs, drawn = (None if m is None else m.house() for m in (raw.lungs, raw.infiltrate))
                    picture = finding_picture(raw.volume, finding, lungs, drawn)
                    tiles[finding.kind] = _tile(Image.open(BytesIO(picture)), f"{finding.kind} ({finding.severity})")
    wide, tall = tiles["speck"].size
    whole = Image.new("RGB", (wide * COLUMNS, tall * -(-len(SHOWN) // COLUMNS)), "white")
    for number, kind in enumerate(SHOWN):
        whole.paste(tiles[kind], (number % COLUMNS * wide, number // COLUMNS * tall))
    whole.save(Path(__file__).with_name("audit-findings.png"), optimize=True)


def _tile(picture: Image.Image, text: str) -> Image.Image:
    tile = Image.new("RGB", (picture.width + 12, picture.height + CAPTION), "white")
    tile.paste(picture, (6, 26))
    ImageDraw.Draw(tile).text((8, 7), text, fill="black", font_size=14)
    return tile


if __name__ == "__main__":
    main()
