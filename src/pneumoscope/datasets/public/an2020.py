"""An et al., TCIA "CT Images in COVID-19": chest CTs of 632 patients without masks.

Files are ``volume-covid19-A-NNNN.nii.gz``; re-packs add ``_ct``. The COVID-19-20 challenge drew its scans from here.
"""

from __future__ import annotations

import re
from pathlib import Path

from pneumoscope.datasets.case import Case, CaseFiles
from pneumoscope.datasets.formats.layout import walk
from pneumoscope.datasets.public.covid1920 import volume_case

NAME = "an2020"
SCAN = re.compile(r"(volume-covid19-[A-Z]-\d{4}(?:_\d)?)(?:_ct)?", re.IGNORECASE)
EXPECTED = "volume-covid19-A-NNNN.nii.gz"


def read_an2020_cases(root: str | Path) -> list[Case]:
    """The scans as cases ``volume-covid19-A-NNNN``, none with masks.

    Args:
        root: a folder that holds the scans, however deep.

    Raises:
        DatasetError: no scans, a scan twice, or masks beside them (then it is `covid1920`).
    """
    tree = walk(root, EXPECTED)
    images = tree.by_key("scan", SCAN)
    if not images:
        raise tree.error("holds no volume-covid19-A-NNNN.nii.gz")
    drawn = [scan.path for scan in tree.scans if scan.stem.lower().endswith("_seg")]
    if drawn:
        raise tree.error("holds masks, which this dataset does not have: read it as covid1920", path=drawn[0])
    return [volume_case(NAME, name, NAME, CaseFiles(image)) for name, image in images.items()]
