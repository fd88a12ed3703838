"""Options of the verbs that write cases, each once: command line, Python and `run.json` follow from the fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from pneumoscope.errors import InputError
from pneumoscope.models.options import ModelOptions
from pneumoscope.options import option

SAVABLE = ("points", "vti", "mesh")
"""Files written only on request: point tables, the scan for ParaView, surfaces with their picture."""


@dataclass(frozen=True, kw_only=True)
class CaseOptions:
    """What `segment` and `quantify` have in common.

    Raises:
        InputError: a threshold outside [0, 255), an unknown name in `save`, or `save` together with `fast`.
    """

    lungs: str | Path | None = option(
        None,
        "Lung masks made elsewhere (1 right, 2 left, or by name): a mask, a folder with one per case, or a pattern "
        "such as masks/{case}.nii.gz; a manifest's own go before them.",
        metavar="MASK|DIR|PATTERN", file=True,
    )  # fmt: skip
    lobes: str | Path | None = option(
        None, "Masks of the five lobes, likewise; adds their score.", metavar="MASK|DIR|PATTERN", file=True
    )
    infiltrate: str | Path | None = option(
        None, "Infiltrate masks, likewise: what quantify measures, and what segment compares its own with.",
        metavar="MASK|DIR|PATTERN", file=True,
    )  # fmt: skip
    threshold: float | None = option(
        None, "Cut masks of probabilities at T; masks of labels are left as they are.", metavar="T"
    )
    intensity: Literal["auto", "hu"] = option(
        "auto", "auto refuses what does not look like Hounsfield units; hu takes it as it is."
    )
    save: Sequence[str] = option(
        (),
        "Also write point tables, the scan for ParaView (volume.vti), surfaces (STL, GLB, surfaces.vtp) with a "
        "picture. Repeatable.",
        metavar=",".join(SAVABLE), commas=True,
    )  # fmt: skip
    fast: bool = option(False, "Masks and numbers only: no pages, no DICOM.")
    deidentify: bool = option(False, "Leave out of seg*.dcm and report.dcm who the patient is.")

    def __post_init__(self) -> None:
        if self.threshold is not None:
            from pneumoscope.io.masks import require_threshold

            require_threshold(self.threshold)
        unknown = [name for name in self.save if name not in SAVABLE]
        if unknown:
            raise InputError(f"save got {', '.join(map(repr, unknown))}, expected names of {', '.join(SAVABLE)}")
        if self.fast and self.save:
            raise InputError(f"fast writes masks and numbers only, but save asks for {', '.join(self.save)}; use one")


@dataclass(frozen=True, kw_only=True)
class SegmentOptions(ModelOptions, CaseOptions):
    """How scans are segmented and written."""

    uncertainty: bool = option(
        False, "Also write uncertainty-entropy.nii.gz and uncertainty-variance.nii.gz, how unsure the networks are."
    )
    probability: bool = option(False, "Also write probability.nii.gz, the infiltrate's probability.")


@dataclass(frozen=True, kw_only=True)
class QuantifyOptions(CaseOptions):
    """How masks made elsewhere are measured; see `CaseOptions`."""


@dataclass(frozen=True, kw_only=True)
class XrayOptions:
    """How radiographs are classified; `threads` files are read side by side."""

    model: str | Path = option("xray", "A shipped model's name, or a model folder.", metavar="NAME|DIR", file=True)
    heatmaps: bool = option(True, "Write IMAGE_heatmap.png; without them it is quicker.")
    method: Literal["grad-cam", "occlusion"] = option(
        "grad-cam", "grad-cam is quick; occlusion needs no gradients and runs the network hundreds of times a picture.",
        flags=("--heatmap-method",),
    )  # fmt: skip
    device: str = "auto"
    threads: int = 2


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """How a dataset is audited.

    Raises:
        InputError: no such kind of repair, kinds without `fix`, or an `also` that is not ``NAME=ROOT``.
    """

    fix: Path | None = option(None, "Also write a cleaned copy; the originals stay.", metavar="DIR", file=True)
    # repair, no_repair: kinds of `pneumoscope.datasets.audit.rules.REPAIRS`
    repair: Sequence[str] = option((), "With --fix: repair this kind only. Repeatable.", metavar="KIND")
    no_repair: Sequence[str] = option((), "With --fix: leave this kind. Repeatable.", metavar="KIND")
    model: str | Path | None = option(
        None, "Compare with this model: regions not annotated, lesions not predicted.", metavar="NAME|DIR", file=True
    )
    lungs_model: str | Path = option(
        "lungs", "With --model: finds lungs where there is no mask.", metavar="NAME|DIR", file=True
    )
    # (name, folder) of further datasets whose scans must not turn up in this one, or ``NAME=ROOT``
    also: Sequence[Any] = option((), "Look for this dataset's scans too. Repeatable.", metavar="NAME=ROOT")
    keep_going: bool = option(False, "Judge the rest when a scan cannot be read, instead of refusing.")
    rules: Any = None  # thresholds, `pneumoscope.datasets.audit.rules.AuditRules`; None for its defaults
    device: str = "auto"

    def __post_init__(self) -> None:
        from pneumoscope.datasets.audit.rules import REPAIRS, AuditRules

        object.__setattr__(self, "rules", self.rules or AuditRules())
        object.__setattr__(self, "fix", None if self.fix is None else Path(self.fix))
        given = [item.partition("=")[::2] if isinstance(item, str) else item for item in self.also]
        if not all(name and str(root) for name, root in given):
            raise InputError(f"also got {', '.join(map(str, self.also))}, expected NAME=ROOT")
        object.__setattr__(self, "also", tuple((name, Path(root)) for name, root in given))
        unknown = sorted({*self.repair, *self.no_repair} - set(REPAIRS))
        if unknown:
            raise InputError(f"no repair for {', '.join(unknown)}; there are repairs for {', '.join(REPAIRS)}")
        if self.fix is None and (self.repair or self.no_repair):
            raise InputError("kinds of repairs were named, but no folder for the cleaned copy; add --fix DIR")

    @property
    def repairs(self) -> tuple[str, ...]:
        """Kinds that are repaired in the cleaned copy."""
        from pneumoscope.datasets.audit.rules import REPAIRS

        return tuple(kind for kind in self.repair or REPAIRS if kind not in self.no_repair)


class AuditKeywords(TypedDict, total=False):
    """Fields of `AuditOptions` as keywords of a call, for editors and type checkers."""

    fix: Path | None
    repair: Sequence[str]
    no_repair: Sequence[str]
    model: str | Path | None
    lungs_model: str | Path
    also: Sequence[Any]
    keep_going: bool
    rules: Any
    device: str
