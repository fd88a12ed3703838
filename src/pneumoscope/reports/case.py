"""The report of one case: ``report.json`` for programs and ``report.html`` for people, from the same numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope._version import __version__
from pneumoscope.errors import Finding
from pneumoscope.io.files import jsonable, write_json
from pneumoscope.metrics.overlap import count, mean_over_infected, score, slice_scores
from pneumoscope.preprocess.slices import to_slices
from pneumoscope.reports import figures
from pneumoscope.reports.page import NOTICE, SEVERITY_ROWS, card_table, flat, ml, number, percent, words, write_page
from pneumoscope.severity.measure import STATES, Severity
from pneumoscope.volume import Mask, Volume

FORMAT = 1  # Layout of report.json; grows when an entry changes its meaning

_LEVELS = {"no_lung_found": "error", "no_infiltrate_found": "info", "lobes_incomplete": "info"}
_ON_LUNGS = {
    "one_lung_only": "of one lung only",
    "lung_left_out": "lung may be missing from the mask",
    "pleural_fluid": "pleural fluid is not counted as lung",
    "pleural_air": "pleural air is not counted as lung",
    "lung_dense": "the border of dense lung is uncertain",
    "lung_thin": "density as in emphysema",
    "lung_incomplete": "of the scanned part only",
    "lungs_unequal": "a lung may be missing from the mask",
    "lung_volume_implausible": "implausible for an adult",
    "density_implausible": "the values may not be Hounsfield units",
}
"""States that bear on the lung volume, and what they mean beside it."""

_ON_INFILTRATE = {
    "infiltrate_outside_lungs": "a part lies outside the lung mask and is not counted",
    "slices_too_thick": "rough, as slices lie far apart",
    "density_implausible": "the values may not be Hounsfield units",
    "metal_or_undiluted_contrast": "streaks may be counted or hide infiltrate",
    "sternal_wires": "effusion and collapse after surgery may be counted",
    "breathing_motion": "blurred lung may be counted",
    "contrast_medium": "contrast-filled vessels may be counted",
    "lung_dense_throughout": "faint ground-glass is uncertain",
    "infiltrate_diffuse": "not specific to pneumonia",
    "mass_in_lung": "a mass may be counted",
    "solid_region": "consolidation, collapse or tumour",
    "unlike_training_scans": "not tested on scans like this one",
}
"""Likewise for the infiltrate; all of both bear on the share."""

_EDGE_WORDS = {
    "superior": "the top (head)",
    "inferior": "the bottom (feet)",
    "anterior": "the front",
    "posterior": "the back",
    "right": "the right side",
    "left": "the left side",
}
_FILES = (
    "view.html", "lungs.nii.gz", "infiltrate.nii.gz", "probability.nii.gz", "uncertainty-entropy.nii.gz",
    "uncertainty-variance.nii.gz", "points/lungs.csv", "points/infiltrate.csv", "points/truth.csv", "volume.vti",
    "surfaces.vtp", "mesh/case.glb", "seg.dcm", "seg-infiltrate.dcm", "report.dcm",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseContent:
    """Everything that is known of one case when it is written; all arrays on the scan's grid."""

    volume: Volume  # the scan; its findings are reported too
    lungs: Mask  # 1 = right, 2 = left
    infiltrate: Mask  # what was found, or marked elsewhere
    severity: Severity  # of these masks
    # (i, j, k) uint8, the network's probability times 255; None without a network
    probability: NDArray[np.uint8] | None = None
    # (i, j, k) uint8, how unsure the networks are, times 255; None when not asked for
    entropy: NDArray[np.uint8] | None = None
    variance: NDArray[np.uint8] | None = None  # likewise, how far their votes lie apart
    computing: Mapping[str, Any] | None = None  # how the networks were run, for `report.json`; None without a network
    truth: Mask | None = None  # a reader's infiltrate to compare with, or None
    findings: tuple[Finding, ...] = ()  # more findings, of the run
    cards: tuple[Mapping[str, Any], ...] = ()  # cards of the models used; a ``name`` may be added


def write_case_report(
    folder: str | Path,
    content: CaseContent,
    *,
    findings: Sequence[Finding] = (),
    page: bool = True,
    picture: bytes | None = None,
    still: bytes | None = None,
    surfaces: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``report.html``, then ``report.json``, into the folder of a case, after everything that is to be linked.

    Args:
        folder: the case's folder; files of ours that lie in it are linked.
        content: the case; a reader's infiltrate adds the scores against it.
        findings: of writing, beside those of the case and of its scan.
        page: whether to write ``report.html``.
        picture: its slices, from `slices_png`; None has them drawn here.
        still: a PNG of the surfaces, shown below the slices.
        surfaces: what was written in 3D, for ``report.json``; None when that was left out.

    Returns:
        What stands in ``report.json``.

    Raises:
        GeometryError: when a mask lies on another grid than the scan.
    """
    volume, truth, computing = content.volume, content.truth, content.computing
    every = _unique((*volume.findings, *content.findings, *findings))
    report = {
        "format": FORMAT,
        "kind": "case",
        "notice": NOTICE,
        "software": {"name": "pneumoscope", "version": __version__},
        "case": volume.case,
        "scan": _scan(volume),
        "severity": content.severity.as_dict(),
        "profile": _profile(volume, content.lungs, content.infiltrate),
        "slices_shown": figures.choose_slices(content.lungs.labels, content.infiltrate.labels),
        "truth": None if truth is None else _against(truth, content.infiltrate),
        "findings": [finding.as_dict() for finding in every],
        "models": [dict(card) for card in content.cards],
        "computing": None if computing is None else dict(computing),
        "surfaces": None if surfaces is None else dict(surfaces),
        "timings_seconds": None,  # the same case gives the same bytes; times stand in run.json
    }
    report = jsonable(report)
    if page:
        picture = picture or slices_png(volume, content.lungs, content.infiltrate, truth)
        write_page(Path(folder) / "report.html", "case.html", _context(Path(folder), report, picture, still))
    write_json(Path(folder) / "report.json", report)  # last: it tells that the case is whole
    return report


def slices_png(volume: Volume, lungs: Mask, infiltrate: Mask, truth: Mask | None = None) -> bytes:
    """The slices of the report with their masks, as PNG."""
    shown = figures.choose_slices(lungs.labels, infiltrate.labels)
    return figures.montage_png(figures.case_views(volume, lungs, infiltrate, truth, slices=shown))


def _unique(findings: Sequence[Finding]) -> list[Finding]:
    """Each finding once, errors first, then warnings."""
    order = ("error", "warning", "info")
    return sorted(dict.fromkeys(findings), key=lambda finding: order.index(finding.severity))


def _scan(volume: Volume) -> dict[str, Any]:
    low, high = float(volume.hu.min()), float(volume.hu.max())
    return {
        "shape": list(volume.native.shape),
        "spacing_mm": [round(s, 6) for s in volume.native.spacing_mm],
        "orientation": "".join(volume.native.axis_codes),
        "hu_range": [low, high],
        "source": dict(volume.source),
    }


def _profile(volume: Volume, lungs: Mask, infiltrate: Mask) -> dict[str, list[float]]:
    """Millilitres of lung, and of infiltrate inside it, in each axial slice from the feet upwards."""
    size_i, size_j, size_k = volume.grid.shape
    centres = [[(size_i - 1) / 2, (size_j - 1) / 2, k] for k in range(size_k)]
    ml = volume.grid.voxel_volume_ml
    lung, spot = np.zeros(size_k, np.int64), np.zeros(size_k, np.int64)
    for i in range(size_i):  # plane by plane keeps the temporaries small
        inside = lungs.labels[i] > 0
        lung += inside.sum(axis=0)
        spot += (inside & (infiltrate.labels[i] > 0)).sum(axis=0)
    return {
        "z_mm": [round(float(z), 3) for z in volume.grid.world(centres)[:, 2]],
        "lung_ml": [round(float(v), 4) for v in lung * ml],
        "infiltrate_ml": [round(float(v), 4) for v in spot * ml],
    }


def _against(truth: Mask, infiltrate: Mask) -> dict[str, Any]:
    found, drawn = infiltrate.any, truth.any
    mean = mean_over_infected(slice_scores(to_slices(found), to_slices(drawn)))
    return {
        **score(count(found, drawn)).as_dict(),
        "found_ml": infiltrate.volume_ml(),
        "reference_ml": truth.volume_ml(),
        "mean_over_infected_slices": asdict(mean),
    }


def _context(folder: Path, report: dict[str, Any], picture: bytes, still: bytes | None) -> dict[str, Any]:
    window = figures.LUNG_WINDOW
    return {
        "title": report["case"],
        "report": report,
        "banners": _banners(report),
        "beside": _beside(report["severity"]["states"]),
        "key": "../private/key.csv" if (folder.parent / "private" / "key.csv").is_file() else "",
        "picture": figures.data_uri(picture),
        "still": None if still is None else figures.data_uri(still),
        "legend": _legend(report),
        "window": f"{window.low_hu:.0f} to {window.high_hu:.0f}".replace("-", "\N{MINUS SIGN}"),
        "spacing": " \N{MULTIPLICATION SIGN} ".join(f"{s:.3g}" for s in report["scan"]["spacing_mm"]),
        "rows": SEVERITY_ROWS,
        "severity_rows": severity_rows(report["severity"]),
        "chart": _chart(report),
        "truth_words": _empty_words(report["truth"]),
        "cards": [card_table(card) for card in report["models"]],
        "short_cards": [_short_card(card) for card in report["models"]],
        "facts": _facts(report),
        "files": ["report.json", *_files(folder, report)],
    }


def _files(folder: Path, report: dict[str, Any]) -> list[str]:
    """Files of ours in the folder; a reference's points of an earlier run are not this run's."""
    stale = set() if report["truth"] else {"points/truth.csv"}
    return [name for name in _FILES if name not in stale and (folder / name).is_file()]


def _beside(states: Sequence[str]) -> dict[str, list[str]]:
    """What the states mean beside the three numbers on top of the page."""
    lungs, infiltrate = ([said[s] for s in states if s in said] for said in (_ON_LUNGS, _ON_INFILTRATE))
    return {"involvement": list(dict.fromkeys([*lungs, *infiltrate])), "infiltrate": infiltrate, "lungs": lungs}


def _banners(report: dict[str, Any]) -> list[dict[str, str]]:
    """States of the measurement and findings of level error, the gravest first."""
    states = [
        {"level": _LEVELS.get(state, "warning"), "title": words(state).capitalize(), "text": STATES[state]}
        for state in report["severity"]["states"]
    ]
    edges = [_EDGE_WORDS[edge] for edge in report["severity"]["edges"]]
    for banner in states:
        if banner["title"] == "Lung incomplete":
            banner["text"] += f" Reached: {', '.join(edges)}."
    errors = [
        {"level": "error", "title": finding["code"], "text": finding["message"]}
        for finding in report["findings"]
        if finding["severity"] == "error"
    ]
    return sorted(errors + states, key=lambda banner: ("error", "warning", "info").index(banner["level"]))


def _legend(report: dict[str, Any]) -> list[tuple[str, str]]:
    lungs = [("right lung", figures.RIGHT_LUNG), ("left lung", figures.LEFT_LUNG)]
    if report["severity"]["right"] is None:
        lungs = [("lungs", figures.RIGHT_LUNG)]
    reference = [] if report["truth"] is None else [("reference infiltrate", figures.TRUTH)]
    return [*lungs, ("infiltrate", figures.INFILTRATE), *reference]


def _chart(report: dict[str, Any]) -> dict[str, Any] | None:
    """Polygons of the profile in a box of 1000 x 100; None without lung."""
    profile = report["profile"]
    lung, spot = (np.asarray(profile[name]) for name in ("lung_ml", "infiltrate_ml"))
    if lung.max() <= 0:
        return None
    return {
        "lung": _steps(lung / lung.max()),
        "infiltrate": _steps(spot / lung.max()),
        "marks": [round(1000 * (k + 0.5) / lung.size, 1) for k in report["slices_shown"]],
        "from_mm": profile["z_mm"][0],
        "to_mm": profile["z_mm"][-1],
        "top_ml": float(lung.max()),
    }


def _steps(heights: NDArray[np.floating[Any]]) -> str:
    """A staircase over the width of 1000, heights of 0 to 1 upwards from y = 100."""
    edges = np.linspace(0, 1000, heights.size + 1)
    points = [(0.0, 100.0)]
    for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True):
        points += [(left, 100 - 97 * height), (right, 100 - 97 * height)]
    points.append((1000.0, 100.0))
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _empty_words(truth: dict[str, Any] | None) -> str:
    return {
        "both": "Neither the reference nor the prediction marks infiltrate; the scores of 1 say only that they agree.",
        "prediction": "The prediction is empty, the reference is not.",
        "reference": "The reference is empty: all predicted infiltrate is false positive.",
    }.get((truth or {}).get("empty", ""), "")


def _short_card(card: dict[str, Any]) -> dict[str, str]:
    """What a printed page says of a model."""
    limits = card.get("limits", "")
    return {
        "title": str(card.get("title") or card.get("name") or "model"),
        "licence": str(card.get("licence", "")),
        "limits": limits if isinstance(limits, str) else " ".join(str(limit) for limit in limits),
    }


def _facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    low, high = report["scan"]["hu_range"]
    rows = [("values of the scan", f"{low:.0f} to {high:.0f} HU".replace("-", "\N{MINUS SIGN}"))]
    rows += flat(report["scan"]["source"])
    rows += flat(report.get("computing") or {})
    return rows


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
