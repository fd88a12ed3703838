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
    )
    from pneumoscope.errors import PneumoscopeError
    from pneumoscope.geometry import Grid
    from pneumoscope.study.engine import score_study
    from pneumoscope.volume import Mask, Volume

_CALLS = (
    "audit", "classify", "compare", "compare_studies", "convert", "crossval", "evaluate", "quantify", "read_mask",
    "read_scan", "run_study", "segment", "train",
)  # fmt: skip
_HOMES = {
    **dict.fromkeys(_CALLS, "api"),
    "score_study": "study.engine",
    "Grid": "geometry",
    "Volume": "volume",
    "Mask": "volume",
    "PneumoscopeError": "errors",
}
"""Public name -> its module; loaded on first use, so that `import pneumoscope` costs nothing."""

__all__ = [
    "Grid",
    "Mask",
    "PneumoscopeError",
    "Volume",
    "__version__",
    "audit",
    "classify",
    "compare",
    "compare_studies",
    "convert",
    "crossval",
    "evaluate",
    "quantify",
    "read_mask",
    "read_scan",
    "run_study",
    "score_study",
    "segment",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pneumoscope' has no attribute {name!r}")
    return getattr(import_module(f"pneumoscope.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
