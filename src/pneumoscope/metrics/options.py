"""Options of `evaluate`; a file of their own, so that the command line's help loads nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypedDict

from pneumoscope.errors import InputError
from pneumoscope.options import option


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """How masks are scored.

    Raises:
        InputError: a spacing that is not three positive numbers, a tolerance below 0, or a threshold outside [0, 255).
    """

    structure: Literal["infiltrate", "lungs"] = option(
        "infiltrate", "Which mask of a case folder to score, where only one side has case folders."
    )
    spacing_mm: tuple[float, float, float] | None = option(
        None,
        "Voxel size in mm along right, front and head, for volumes and distances instead of the one in the files.",
        metavar="X Y Z", flags=("--spacing",),
    )  # fmt: skip
    threshold: float | None = option(
        None, "Cut masks of probabilities at T (0.5; 127 for masks made from 0/255).", metavar="T"
    )
    surface_tolerance_mm: float | None = option(
        None, "How far a surface may be off and still count as met; 3 for infiltrate, 1 for lungs when not given.",
        metavar="T", low=0.0,
    )  # fmt: skip

    def __post_init__(self) -> None:
        from pneumoscope.io.masks import require_threshold

        require_threshold(self.threshold)
        spacing, tolerance = self.spacing_mm, self.surface_tolerance_mm
        if spacing is not None and (len(spacing) != 3 or not all(math.isfinite(s) and s > 0 for s in spacing)):
            raise InputError(f"a spacing is three positive numbers in mm, got {tuple(spacing)}")
        if tolerance is not None and not 0 <= tolerance < math.inf:
            raise InputError(f"a surface tolerance is a length in mm of at least 0, got {tolerance}")


class EvaluateKeywords(TypedDict, total=False):
    """Fields of `EvaluateOptions` as keywords of a call, for editors and type checkers."""

    structure: Literal["infiltrate", "lungs"]
    spacing_mm: tuple[float, float, float] | None
    threshold: float | None
    surface_tolerance_mm: float | None
