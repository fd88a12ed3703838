"""The border: files in, files out. Everything inside is RAS+, millimetres and Hounsfield units.

Names are loaded when first used, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pneumoscope.io.dicom.read import is_dicom, list_series, read_dicom
    from pneumoscope.io.intensity import guess_not_hu, require_hu
    from pneumoscope.io.masks import fit_mask
    from pneumoscope.io.read import read_lungs, read_mask, read_volume
    from pneumoscope.io.scans import Listing, ScanRef, find_scans, list_scans
    from pneumoscope.io.write import write_image, write_mask, write_volume

__all__ = [
    "Listing", "ScanRef", "find_scans", "fit_mask", "guess_not_hu", "is_dicom", "list_scans", "list_series",
    "read_dicom", "read_lungs", "read_mask", "read_volume", "require_hu", "write_image", "write_mask", "write_volume",
]  # fmt: skip
_HOMES = {
    "fit_mask": "masks", "guess_not_hu": "intensity", "is_dicom": "dicom.read", "list_series": "dicom.read",
    "read_dicom": "dicom.read", "read_lungs": "read", "read_mask": "read", "read_volume": "read",
    "require_hu": "intensity", "write_image": "write", "write_mask": "write", "write_volume": "write",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'scans')}"), name)
