"""A case as DICOM: two segmentations and a report beside the other files, where the scan was DICOM."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pneumoscope.errors import Finding, PneumoscopeError

if TYPE_CHECKING:
    from pneumoscope.cases.outputs import CaseContent
    from pneumoscope.severity.measure import Severity

FILES = ("seg.dcm", "seg-infiltrate.dcm", "report.dcm")
NOT_WRITTEN, EMPTY = "OUT-DCM-001", "OUT-DCM-002"


def write_dicom(folder: Path, content: CaseContent, *, deidentify: bool) -> tuple[Finding, ...]:
    """Write the case's SEGs and SR.

    A series that can be read but not be referred to must not cost the case: what goes wrong becomes a finding.

    Args:
        folder: the case's folder.
        content: the case; nothing is written unless it was read from DICOM.
        deidentify: leave out who the patient is.

    Returns:
        What there is to report: (), or why the files are not there.
    """
    if content.scan is None or content.volume.source.get("format") != "DICOM":
        return ()
    from pneumoscope.io.dicom.results import write_dicom_results

    try:
        written = write_dicom_results(
            content.scan,
            content.volume,
            (content.lungs, content.infiltrate),
            folder,
            measured=measured(content.severity),
            states=content.severity.states,
            models=", ".join(str(card.get("name", "model")) for card in content.cards),
            series=content.series,
            deidentify=deidentify,
        )
    except PneumoscopeError as problem:
        return (Finding(NOT_WRITTEN, f"the DICOM files were not written: {problem.message}", "warning"),)
    if not written:
        return (Finding(EMPTY, "neither lung nor infiltrate was found: there are no DICOM files", "info"),)
    return ()


def measured(severity: Severity) -> dict[str, dict[str, float]]:
    """Numbers of the structured report by the names of the masks' labels; what cannot be measured is left out."""
    parts = {"right lung": severity.right, "left lung": severity.left}
    if severity.right is None and severity.left is None:
        parts = {"lung": severity.total}
    found = {
        name: {"volume_ml": part.lung_ml, "share_percent": part.share_percent, "mean_hu": part.lung_mean_hu}
        for name, part in parts.items()
        if part is not None
    }
    for name, ml in severity.infiltrate_by_label_ml.items():
        found[name] = {"volume_ml": ml}
    if len(severity.infiltrate_by_label_ml) == 1:
        (name,) = severity.infiltrate_by_label_ml
        found[name] |= {
            "share_percent": severity.total.share_percent,
            "mean_hu": severity.total.infiltrate_mean_hu,
        }
    return {name: {k: float(v) for k, v in values.items() if v is not None} for name, values in found.items()}
