"""Annotations that MD.ai exports as JSON, and their closed outlines in pixel coordinates as masks.

Convention: x counts columns and y counts rows from the outer corner of the first pixel, as web viewers do (pixel (0, 0)
covers [0, 1) x [0, 1), its centre lies at (0.5, 0.5)). A pixel belongs to an outline when its centre does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import DatasetError

PIXEL_CENTRE = 0.5
"""Where the centre of pixel 0 lies. Programs that count from the centre of the first pixel would say 0."""


def vertices_of(value: Any) -> NDArray[np.float64] | None:
    """(n, 2) columns x and y of a list of pairs or of a flat list ``x, y, x, y, ...``; None for anything else.

    None too when a number is missing, not finite, or beyond a million pixels.
    """
    try:
        points = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    if points.ndim == 1 and points.size % 2 == 0:
        points = points.reshape(-1, 2)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points) or not (np.abs(points) < 1e6).all():
        return None
    return points


def rasterise(
    vertices: NDArray[np.float64], shape: tuple[int, int], *, centre: float = PIXEL_CENTRE
) -> NDArray[np.bool_]:
    """The pixels whose centres lie inside a closed outline.

    Inside is counted by crossings (even-odd): where an outline overlaps itself, the overlap is outside, as in OpenCV's
    fillPoly and matplotlib. An edge that runs exactly through a centre gives the pixel to one side only, so that two
    outlines that share an edge never share a pixel and never leave one out.

    Args:
        vertices: (n, 2) x and y; the last is joined to the first. Fewer than three give an empty mask.
        shape: (rows, columns); parts of the outline beyond it are cut off.
        centre: where the centre of pixel 0 lies.

    Returns:
        (rows, columns).
    """
    rows, columns = shape
    inside = np.zeros(shape, np.bool_)
    x0, y0 = vertices[:, 0] - centre, vertices[:, 1] - centre
    x1, y1 = np.roll(x0, -1), np.roll(y0, -1)
    first = np.clip(np.ceil(np.minimum(y0, y1)), 0, rows).astype(np.intp)  # an edge crosses rows low <= row < high
    count = np.clip(np.ceil(np.maximum(y0, y1)), 0, rows).astype(np.intp) - first
    edge = np.repeat(np.arange(len(count)), count)
    if not len(edge):
        return inside
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
    at = x0[edge] + (row - y0[edge]) * ((x1 - x0)[edge] / (y1 - y0)[edge])
    column = np.clip(np.ceil(at), 0, columns).astype(np.intp)
    top, left = int(row.min()), int(column.min())
    height, width = int(row.max()) + 1 - top, int(column.max()) + 1 - left
    crossings = np.bincount((row - top) * width + column - left, minlength=height * width).reshape(height, width)
    box = np.cumsum(crossings, axis=1) % 2 == 1
    inside[top : top + height, left : left + width] = box[:, : columns - left]
    return inside


def rectangle(x: float, y: float, width: float, height: float) -> NDArray[np.float64]:
    """The outline of a box, (4, 2)."""
    return np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], np.float64)


Unusable = Literal["without data", "without an area", "drawn on a picture of another size"]


@dataclass(frozen=True)
class Drawing:
    """One annotation of one image."""

    label: str  # name of the label, blanks tidied, "" where its id stands in no label group
    group: str  # name of the label group
    reader: str  # who drew it, "" where the file does not say
    mode: str  # freeform, polygon, bbox, mask, line, location ...; "" where the file does not say
    # what it was drawn on
    series_uid: str
    image_uid: str
    size: tuple[int, int] | None  # (rows, columns) of the picture it was drawn on, None where the file does not say
    data: Any  # the shape as exported

    def mask(self, shape: tuple[int, int]) -> NDArray[np.bool_] | Unusable:
        """The pixels of the drawing, (rows, columns), or why there are none.

        An outline whose area holds no pixel centre gives an empty mask. A box is filled whole. In ``mask`` mode the
        polygons of the foreground count, less those of the background.
        """
        if self.size is not None and self.size != shape:
            return "drawn on a picture of another size"
        if not isinstance(self.data, Mapping) or not self.data:
            return "without data"
        if self.mode == "bbox":
            box = vertices_of([self.data.get(name) for name in ("x", "y", "width", "height")])
            return "without data" if box is None else rasterise(rectangle(*box.ravel()), shape)
        if self.mode == "mask":
            return self._filled(shape)
        if self.mode in ("line", "location"):
            return "without an area"
        points = vertices_of(self.data.get("vertices"))
        if points is None:
            return "without data"
        return rasterise(points, shape) if len(points) > 2 else "without an area"

    def _filled(self, shape: tuple[int, int]) -> NDArray[np.bool_] | Unusable:
        outlines = {name: _polygons(self.data.get(name)) for name in ("foreground", "background")}
        if not outlines["foreground"]:
            return "without data"
        filled = np.zeros(shape, np.bool_)
        for points in outlines["foreground"]:
            filled |= rasterise(points, shape)
        for points in outlines["background"]:
            filled &= ~rasterise(points, shape)
        return filled


@dataclass(frozen=True)
class Export:
    """What an export says of images; labels of whole series and exams are left out."""

    drawings: Mapping[str, tuple[Drawing, ...]]  # by SeriesInstanceUID, in the file's order

    @property
    def readers(self) -> tuple[str, ...]:
        """Everybody who drew, sorted."""
        return tuple(sorted({drawing.reader for drawn in self.drawings.values() for drawing in drawn}))


def read_mdai(path: str | Path) -> Export:
    """Read an export.

    Raises:
        DatasetError: no such file, cut off, or another kind of JSON.
    """
    try:
        held = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise DatasetError(f"cannot be read ({error.strerror}); expected an MD.ai export", path=path) from None
    except (ValueError, RecursionError) as error:
        said = str(error).split(":")[0]
        raise DatasetError(f"is no JSON or was cut off ({said}); fetch the annotations again", path=path) from None
    if not isinstance(held, dict) or not all(isinstance(held.get(k), list) for k in ("labelGroups", "datasets")):
        raise DatasetError("is no MD.ai export: expected JSON with labelGroups and datasets", path=path)
    names = {
        _text(label.get("id")): (tidy(label.get("name")), tidy(group.get("name")), _text(label.get("annotationMode")))
        for group in _objects(held["labelGroups"])
        for label in _objects(group.get("labels"))
    }
    drawings: dict[str, list[Drawing]] = {}
    for dataset in _objects(held["datasets"]):
        for entry in _objects(dataset.get("annotations")):
            label, group, mode = names.get(_text(entry.get("labelId")), ("", "", ""))
            series, image = (_text(entry.get(name)) for name in ("SeriesInstanceUID", "SOPInstanceUID"))
            if not image:  # a label of a whole series or exam
                continue
            reader, mode = _text(entry.get("createdById")), _text(entry.get("annotationMode")) or mode
            drawn = Drawing(label, group, reader, mode, series, image, _size(entry), entry.get("data"))
            drawings.setdefault(series, []).append(drawn)
    return Export({uid: tuple(drawn) for uid, drawn in drawings.items()})


def tidy(value: Any) -> str:
    """Text with single blanks and none around a slash, "" for anything that is no text."""
    return "/".join(" ".join(part.split()) for part in _text(value).split("/"))


def _text(value: Any) -> str:
    """Text as it is; missing values (null, NaN) and anything else are ""."""
    return value.strip() if isinstance(value, str) else ""


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    return (item for item in value if isinstance(item, dict)) if isinstance(value, list) else iter(())


def _size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    height, width = entry.get("height"), entry.get("width")
    whole = [isinstance(side, (int, float)) and side == side and side > 0 for side in (height, width)]
    return (int(height), int(width)) if all(whole) and height is not None and width is not None else None


def _polygons(value: Any) -> list[NDArray[np.float64]]:
    """Usable polygons of a list of polygons; a single polygon is taken as a list of one."""
    if not isinstance(value, list) or not value:
        return []
    found = [vertices_of(polygon) for polygon in value] if isinstance(value[0], list) else [vertices_of(value)]
    if len(value) > 2 and all(points is not None and len(points) == 1 for points in found):
        found = [vertices_of(value)]  # one polygon as pairs
    return [points for points in found if points is not None and len(points) > 2]
