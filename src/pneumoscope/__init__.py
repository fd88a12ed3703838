"""pneumoscope: pneumonia in chest imaging, from a scan to numbers and pictures, and from one hospital to the next.

Research software; not a medical device.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pneumoscope._version import __version__

if TYPE_CHECKING:
    from pneumoscope.api import classify, compare, compare_studies, evaluate, quantify, read_scan, run_study, segment
    from pneumoscope.errors import PneumoscopeError
    from pneumoscope.geometry import Grid
    from pneumoscope.volume import Mask, Volume

_HOMES = {
    "classify": "api",
    "compare": "api",
    "compare_studies": "api",
    "evaluate": "api",
    "read_scan": "api",
    "segment": "api",
    "quantify": "api",
    "run_study": "api",
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
    "classify",
    "compare",
    "compare_studies",
    "evaluate",
    "quantify",
    "read_scan",
    "run_study",
    "segment",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pneumoscope' has no attribute {name!r}")
    return getattr(import_module(f"pneumoscope.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
