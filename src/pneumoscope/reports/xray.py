"""The page of a run of radiographs: contact sheets by answer, what could not be read, and the model's card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pneumoscope.reports.figures import data_uri
from pneumoscope.reports.page import card_table, percent, words, write_page

if TYPE_CHECKING:
    from pneumoscope.errors import Finding
    from pneumoscope.inference.radiographs import Answer

MOST_PICTURES = 2000  # Shown on the page; the table holds all. A picture with its heat map takes about 12 kB.

METHOD_NAMES = {"grad-cam": "Grad-CAM (Selvaraju et al. 2017)", "occlusion": "occlusion (Zeiler and Fergus 2014)"}
CLASS_NAMES = {
    "normal": "Normal",
    "bacterial": "Bacterial pneumonia",
    "viral": "Viral pneumonia",
    "covid19": "COVID-19",
}
"""Classes of our models as words; others lose their underscores."""


class Row(Protocol):
    """What the page needs of a picture, see `cases.xray.XrayRow`."""

    @property
    def image(self) -> str: ...  # noqa: D102
    @property
    def status(self) -> str: ...  # noqa: D102
    @property
    def answer(self) -> Answer | None: ...  # noqa: D102
    @property
    def findings(self) -> tuple[Finding, ...]: ...  # noqa: D102
    @property
    def heat_class(self) -> str: ...  # noqa: D102
    @property
    def heat_in_lung_box(self) -> float | None: ...  # noqa: D102
    @property
    def error(self) -> str: ...  # noqa: D102
    @property
    def thumbnail(self) -> bytes: ...  # noqa: D102
    @property
    def heat_thumbnail(self) -> bytes: ...  # noqa: D102


def write_xray_page(
    path: str | Path, rows: Sequence[Row], facts: Mapping[str, Any], card: Mapping[str, Any], method: str
) -> None:
    """Write ``report.html``.

    Args:
        rows: pictures in their order.
        facts: ``classes``, ``counts``, ``checked_for_familiarity``, ``heat_in_lung_box``, ``lung_box_area``.
        card: of the model.
        method: of the heat maps.
    """
    done = [row for row in rows if row.answer is not None]
    order = [*facts["classes"], "cannot say", "none of these"]
    groups = []
    for name in order:
        items = [_item(row) for row in done[:MOST_PICTURES] if row.answer is not None and row.answer.prediction == name]
        if items:
            unseen = wrong_on_unseen(card, name) if name in facts["classes"] else ""
            groups.append({"name": class_name(name), "abstained": name in order[-2:], "items": items, "unseen": unseen})
    context = {
        "title": f"{len(rows)} radiograph{'' if len(rows) == 1 else 's'}",
        "groups": groups,
        "hidden": max(0, len(done) - MOST_PICTURES),
        "failed": [row for row in rows if row.answer is None],
        "facts": facts,
        "method": METHOD_NAMES[method],
        "card": card_table(card),
    }
    write_page(path, "xray.html", context)


def class_name(name: str) -> str:
    """A class of a model as a reader would say it."""
    return CLASS_NAMES.get(name, words(name).capitalize())


def wrong_on_unseen(card: Mapping[str, Any], name: str) -> str:
    """How often this answer was wrong on films of hospitals that twins of the model had not been trained on.

    From ``numbers.unseen_sources`` of the card; empty where a model has no such test.
    """
    tests = [source["unseen"] for source in card.get("numbers", {}).get("unseen_sources", {}).values()]
    given = [(test["class"] == name, round(test["said"].get(name, 0) * test["pictures"])) for test in tests]
    total, wrong = sum(n for _, n in given), sum(n for right, n in given if not right)
    if not tests:
        return ""
    counts: Counter[str] = Counter()
    for test in tests:
        counts[class_name(test["class"])] += test["pictures"]
    films = ", ".join(f"{count} {shown}" for shown, count in counts.items())
    share = f"wrong in {wrong} of {total} ({percent(100 * wrong / total)})" if total else "never given"
    return f"On films of hospitals not in training ({films}), this answer was {share}."


def _item(row: Row) -> dict[str, Any]:
    assert row.answer is not None
    pictures = [("radiograph", data_uri(row.thumbnail))]
    if row.heat_thumbnail:
        pictures.append((f"heat map for {class_name(row.heat_class)}", data_uri(row.heat_thumbnail)))
    return {
        "image": row.image,
        "pictures": pictures,
        "bars": [(class_name(name), value) for name, value in row.answer.probability.items()]
        if row.answer.answered
        else [],
        "reason": row.answer.reason,
        "heat": row.heat_in_lung_box,
        "findings": [finding.message for finding in row.findings],
    }
