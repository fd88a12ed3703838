"""The page of a run of radiographs: contact sheets by answer, what could not be read, and the model's card."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pneumoscope.reports.page import flat, write_page

if TYPE_CHECKING:
    from pneumoscope.errors import Finding
    from pneumoscope.inference.radiographs import Answer

MOST_PICTURES = 2000
"""Shown on the page; the table holds all. A picture with its heat map takes about 12 kB."""

METHOD_NAMES = {
    "grad-cam": "Grad-CAM (Selvaraju et al. 2017)",
    "occlusion": "occlusion (Zeiler and Fergus 2014)",
}
_CARD_ROWS = ("title", "licence", "warning")


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
        path: the file.
        rows: pictures in their order.
        facts: ``classes``, ``counts``, ``checked_for_familiarity``, ``heat_in_lung_box``, ``lung_box_area``.
        card: of the model.
        method: of the heat maps.
    """
    done = [row for row in rows if row.answer is not None]
    limits = card.get("limits", [])
    order = [*facts["classes"], "cannot say", "none of these"]
    groups = []
    for name in order:
        items = [_item(row) for row in done[:MOST_PICTURES] if row.answer is not None and row.answer.prediction == name]
        if items:
            groups.append({"name": name, "abstained": name in order[-2:], "items": items})
    context = {
        "title": f"{len(rows)} radiograph{'' if len(rows) == 1 else 's'}",
        "groups": groups,
        "hidden": max(0, len(done) - MOST_PICTURES),
        "failed": [row for row in rows if row.answer is None],
        "facts": facts,
        "method": METHOD_NAMES[method],
        "limits": [limits] if isinstance(limits, str) else [str(limit) for limit in limits],
        "card": {
            "title": str(card.get("title", "model")),
            "rows": [line for key in _CARD_ROWS if key in card and key != "title" for line in flat(card[key], key)],
            "more": flat({k: v for k, v in card.items() if k not in (*_CARD_ROWS, "limits")}),
        },
    }
    write_page(path, "xray.html", context)


def _item(row: Row) -> dict[str, Any]:
    assert row.answer is not None
    pictures = [("as it is", _uri(row.thumbnail))]
    if row.heat_thumbnail:
        pictures.append((f"heat for {row.heat_class}", _uri(row.heat_thumbnail)))
    return {
        "image": row.image,
        "pictures": pictures,
        "bars": list(row.answer.probability.items()) if row.answer.answered else [],
        "reason": row.answer.reason,
        "heat": row.heat_in_lung_box,
        "findings": [finding.message for finding in row.findings],
    }


def _uri(picture: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(picture).decode("ascii")
