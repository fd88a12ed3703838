"""The report of a comparison: what changed, by how much, and below which change nothing is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumoscope.preprocess.slices import to_slices
from pneumoscope.reports import figures
from pneumoscope.reports.page import by_error, ml, percent, signed, write_page
from pneumoscope.reports.view import Table

if TYPE_CHECKING:
    from pneumoscope.severity.change import Aligned

FATE_COLOURS = {
    "new": "#ff5252",
    "resolved": "#56b4e9",
    "persistent": "#ffb000",
    "denser": "#b0359a",
    "thinner": "#fff3b0",
}
_VERDICTS = {
    "more": "More infiltrate than on the baseline",
    "less": "Less infiltrate than on the baseline",
    "no measurable change": "No measurable change",
    "not measurable": "Not measurable",
}
POINTS = "percentage points"
_SHORT = {"more": "more", "less": "less", "no measurable change": "none", "not measurable": "\N{EN DASH}"}
_REGIONS = {"total": "Both lungs", "right": "Right lung", "left": "Left lung"}


def write_compare_report(folder: Path, document: Mapping[str, Any], pictures: Sequence[bytes]) -> None:
    """Write ``report.html`` from what stands in ``change.json`` and a `change_png` of each follow-up."""
    changes = [
        {
            "change": change,
            "verdict": _VERDICTS[change["verdict"]],
            "sentence": sentence(change),
            "picture": figures.data_uri(picture),
            "rows": [(region_name(name), region) for name, region in change["regions"].items()],
            "folder": "" if len(pictures) == 1 else f"{n}_{change['followup']}/",
        }
        for n, (change, picture) in enumerate(zip(document["changes"], pictures, strict=True), start=1)
    ]
    days = [when(row) for row in document["course"]]
    context = {
        "title": f"Follow-up of {document['baseline']}",
        "dates": days[1:] if all(days) else [],
        "document": document,
        "changes": changes,
        "colours": FATE_COLOURS,
        "course": figures.data_uri(course_png(document["course"])) if len(pictures) > 1 else "",
    }
    write_page(folder / "report.html", "compare.html", context)


PARTLY_DICE = 0.93
"""Lungs that cover each other by less are reported; one patient on two days reaches 0.97 (decision 12)."""


def sentence(change: Mapping[str, Any]) -> str:
    """The change of both lungs in one sentence, and what to know of the registration in another."""
    total = change["regions"]["total"]
    if total["change_points"] is None:
        return "There is no share to compare."
    shares = f"{percent(total['baseline_percent'])} to {percent(total['followup_percent'])} of the lungs"
    floor = total["noise_points"]
    text = f"From {shares}: {signed(total['change_points'], floor)} {POINTS}, noise floor {by_error(floor, floor)}."
    cover = change["registration"]["lung_dice"]
    if cover < PARTLY_DICE:
        text += (
            f" After registration the lungs cover each other only in part (Dice {cover:.2f}, usually 0.97): near the "
            "diaphragm and the edge of the lungs, infiltrate named new or resolved may only have moved."
        )
    return " ".join(text.split())  # plain blanks: the text also goes to terminals


def region_name(name: str) -> str:
    """``right_upper`` becomes ``Right upper zone``."""
    return _REGIONS.get(name, name.replace("_", " ").capitalize() + " zone")


def view_table(change: Mapping[str, Any]) -> Table:
    """The numbers beside the pictures of the page with both scans."""
    rows = [
        (region_name(name), percent(r["baseline_percent"]), percent(r["followup_percent"]), _SHORT[r["verdict"]])
        for name, r in change["regions"].items()
    ]
    rows += [(name.capitalize(), "", ml(fate["ml"]), "") for name, fate in change["fates"].items()]
    return Table(("", "Baseline", "Follow-up", "Change"), tuple(rows))


def when(row: Mapping[str, Any]) -> str:
    """``day 61`` for an entry of the time course; empty where the study dates are not known."""
    return "" if row.get("days") is None else f"day {row['days']}".replace("-", "\N{MINUS SIGN}")


def change_png(found: Aligned, count: int = 3) -> bytes:
    """Baseline, follow-up laid over it, and the lesion status, one row per slice with its position.

    The pictures are those of the coarse copies that were registered; the slices are those with most change, spread over
    the scan.
    """
    from matplotlib.colors import to_rgba

    from pneumoscope.preprocess.spatial import Resample

    grid = found.baseline.volume.grid
    fates = Resample(grid).for_labels().apply(found.fates).labels
    lungs = (found.baseline.lungs > 0.5).astype(np.uint8)
    chosen = figures.choose_slices(lungs, (fates > 0).astype(np.uint8), count)
    names = list(found.fates.names.values())
    spacing_mm = (grid.spacing_mm[1], grid.spacing_mm[0])
    high, wide = (n * step for n, step in zip(to_slices(lungs[:, :, :1])[0].shape, spacing_mm, strict=True))
    figure = figures.new_figure(8.4, (0.25 + 2.8 * high / wide) * len(chosen))
    axes = figure.subplots(len(chosen), 3, squeeze=False)
    figure.set_facecolor("#0b0d10")
    titles = ("baseline", "follow-up, aligned", "lesion status")
    for row, k in zip(axes, sorted(chosen, reverse=True), strict=True):
        z_mm = grid.world([(n - 1) / 2 for n in grid.shape[:2]] + [k])[2]
        place = f", z = {z_mm:.0f} mm".replace("-", "\N{MINUS SIGN}")
        before, after = (to_slices(a[:, :, k : k + 1])[0] for a in (found.baseline.volume.hu, found.followup_hu))
        for panel, hu, title in zip(row, (before, after, before), titles, strict=True):
            figures.draw_slice(panel, figures.SliceView(hu, spacing_mm=spacing_mm))
            panel.set_title(title + place, color="white", fontsize=8, pad=3)
        fate = to_slices(fates[:, :, k : k + 1])[0]
        paint = np.zeros((*fate.shape, 4))
        for label, name in enumerate(names, start=1):
            paint[fate == label] = to_rgba(FATE_COLOURS[name], 0.75)
        row[2].imshow(paint, extent=(0.0, wide, high, 0.0), interpolation="nearest")
    figure.subplots_adjust(0.005, 0.005, 0.995, 1 - 0.22 / figure.get_figheight(), 0.01, 0.1)
    return figures.png(figure)


def course_png(course: Sequence[Mapping[str, Any]]) -> bytes:
    """Share of the lungs over the dates, with the noise floor against the baseline."""
    figure = figures.new_figure(7.0, 2.8)
    axes = figure.add_subplot()
    at = np.arange(1, len(course) + 1)
    share = [np.nan if row["share_percent"] is None else row["share_percent"] for row in course]
    floor = [row["noise_points"] or 0.0 for row in course]
    axes.errorbar(at, share, yerr=floor, marker="o", color="#c2410c", ecolor="#8a8f98", capsize=4, linewidth=1.6)
    days = [when(row) or str(n) for n, row in zip(at, course, strict=True)]
    axes.set_xticks(at, [f"{day}\n{row['case'][:18]}" for day, row in zip(days, course, strict=True)], fontsize=8)
    axes.set_ylabel("lung involvement, %", fontsize=9)
    axes.set_ylim(0, max(1.0, 1.15 * np.nanmax(np.add(share, floor))))
    axes.grid(axis="y", alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    return figures.png(figure)
