"""pneumoscope: pneumonia in chest imaging, from a scan to numbers and pictures, and from one hospital to the next.

Research software; not a medical device.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pneumoscope._version import __version__

if TYPE_CHECKING:
    from pneumoscope.api import (
        audit,
        classify,
        compare,
        compare_studies,
        convert,
        crossval,
        evaluate,
        quantify,
        read_mask,
        read_scan,
        run_study,
        segment,
        train,
    )  # fmt: skip
    from pneumoscope.errors import PneumoscopeError
    from pneumoscope.geometry import Grid
    from pneumoscope.study.engine import score_study
    from pneumoscope.volume import Mask, Volume

__all__ = [
    "Grid", "Mask", "PneumoscopeError", "Volume", "__version__", "audit", "classify", "compare", "compare_studies",
    "convert", "crossval", "evaluate", "quantify", "read_mask", "read_scan", "run_study", "score_study", "segment",
    "train",
]  # fmt: skip
_HOMES = {
    "Grid": "geometry", "Mask": "volume", "PneumoscopeError": "errors", "Volume": "volume",
    "score_study": "study.engine",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """A public name, from `_HOMES` or the `api`; loaded on first use, so that `import pneumoscope` costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'pneumoscope' has no attribute {name!r}")
    return getattr(import_module(f"pneumoscope.{_HOMES.get(name, 'api')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
