"""Severity in words: lesions, where they lie, and how sure the network is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pneumoscope.reports.page import ml, number, percent


def severity_rows(severity: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lines for a table of the `severity` of a `report.json`; none where nothing beyond the counts was measured."""
    return [*_lesions(severity.get("lesions")), *_spread(severity.get("distribution")), *_range(severity)]


def _lesions(lesions: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if lesions is None:
        return []
    smallest = ml(lesions["smallest_ml"])
    rows = [("Lesions", f"{lesions['count']} of at least {smallest}")]
    if lesions["specks"]:
        rows.append((f"Below {smallest}", f"{lesions['specks']}, together {ml(lesions['specks_ml'])}"))
    if lesions["count"]:
        rows.append(("Largest lesion", ml(lesions["largest_ml"])))
        rows.append(("Median lesion", ml(lesions["median_ml"])))
    return rows


def _spread(spread: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if spread is None or spread["peripheral_percent"] is None:
        return []
    even = percent(spread["lung_peripheral_percent"])
    depth = f"{number(spread['peripheral_mm'], 0)} mm"
    rows = [
        (f"Peripheral (within {depth} of the surface)", f"{percent(spread['peripheral_percent'])} (if even: {even})"),
        ("Dorsal half of the lungs", f"{percent(spread['dorsal_percent'])} (if even: 50 %)"),
        ("Caudal half of the lungs", f"{percent(spread['caudal_percent'])} (if even: 50 %)"),
    ]
    if spread["right_percent"] is not None:
        rows.append(("Right lung", percent(spread["right_percent"])))
    return rows


def _range(severity: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The network's own range, with what it is and what it is not."""
    interval = severity.get("interval")
    if interval is None or interval["low_percent"] is None:
        return []
    strict, loose, usual = (number(interval[key]) for key in ("strict", "loose", "threshold"))
    found = f"{ml(interval['low_ml'])} to {ml(interval['high_ml'])}, expected {ml(interval['expected_ml'])}"
    meaning = (
        f"the same network cut at a probability of {strict} and of {loose} instead of {usual}; no confidence interval: "
        "errors of the lung mask and unfamiliar scanners are not in it"
    )
    return [("Network's range of the volume", f"{found} ({meaning})")]
