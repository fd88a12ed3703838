"""Pictures of slices with masks on them, as PNG bytes.

Pictures are radiological: the patient's right is on the left side, the front is up (see `preprocess.slices`). They are
drawn with Matplotlib's object interface, so nothing global is touched and no screen is needed.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import InputError
from pneumoscope.preprocess.slices import HuWindow, to_slices
from pneumoscope.volume import Mask, Volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LUNG_WINDOW = HuWindow(-1350.0, 150.0)  # The usual window for reading lungs: level -600, width 1500 HU

RIGHT_LUNG, LEFT_LUNG, INFILTRATE, TRUTH = "#56b4e9", "#2ee6a8", "#ff7f2a", "#fff26b"
"""Colours that colour-blind readers can tell apart on grey."""

_BACKGROUND = "#0b0d10"
_MARGIN_MM = 12.0
_DOTS_PER_INCH = 130


@dataclass(frozen=True, eq=False)
class SliceView:
    """One axial slice ready to be drawn, in the radiological view."""

    hu: NDArray[np.floating[Any]]  # (h, w) Hounsfield units
    lungs: NDArray[Any] | None = None  # (h, w) labels, 1 right and 2 left (others are outlined like 1), or None
    infiltrate: NDArray[Any] | None = None  # (h, w) labels, 0 none, or None
    truth: NDArray[Any] | None = None  # (h, w) a reader's infiltrate, or None
    spacing_mm: tuple[float, float] = (1.0, 1.0)  # distance between rows and between columns
    title: str = ""  # written above

    def __post_init__(self) -> None:
        if self.hu.ndim != 2 or min(self.hu.shape) < 1:
            raise InputError(f"a slice is drawn from (h, w) pixels, got shape {self.hu.shape}")
        for name in ("lungs", "infiltrate", "truth"):
            mask = getattr(self, name)
            if mask is not None and mask.shape != self.hu.shape:
                raise InputError(f"the mask {name} has shape {mask.shape}, its slice {self.hu.shape}")


def new_figure(width_in: float, height_in: float) -> Figure:
    """An empty Matplotlib figure that no window manager knows of; hand it to `png` when drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=_DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    return figure


_MARK: ContextVar[str] = ContextVar("mark", default="")


@contextmanager
def marked(words: str) -> Iterator[None]:
    """Figures made in here carry the words in a corner and in the file's description; none where they are empty."""
    token = _MARK.set(words)
    try:
        yield
    finally:
        _MARK.reset(token)


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes; the same drawing gives the same bytes. See `marked`."""
    stream, words = BytesIO(), _MARK.get()
    about: dict[str, str | None] = {"Software": None}
    if words:
        figure.text(0.995, 0.005, f"{words} data", ha="right", va="bottom", fontsize=7, color="#b3261e")
        about["Description"] = f"{words} data"
    figure.savefig(stream, format="png", facecolor=figure.get_facecolor(), metadata=about)
    return stream.getvalue()


def vectors(figure: Figure) -> dict[str, bytes]:
    """The figure as ``svg`` and ``pdf``, for papers; after `png`, which adds the mark. Same drawing, same bytes."""
    from matplotlib import rc_context

    drawn = {}
    with rc_context({"svg.hashsalt": "pneumoscope", "svg.fonttype": "none"}):
        for kind, date in (("svg", "Date"), ("pdf", "CreationDate")):
            stream = BytesIO()
            figure.savefig(stream, format=kind, metadata={date: None})
            drawn[kind] = stream.getvalue()
    return drawn


def data_uri(picture: bytes) -> str:
    """PNG or JPEG bytes as an address that can stand in an offline page; empty for no picture."""
    kind = "jpeg" if picture.startswith(b"\xff\xd8") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}" if picture else ""


def montage_png(views: Sequence[SliceView], *, window: HuWindow = LUNG_WINDOW, plain: bool = True) -> bytes:
    """Slices side by side with their masks and, with `plain`, above each the same slice without, as PNG.

    Raises:
        InputError: no slices.
    """
    if not views:
        raise InputError("a picture needs at least one slice")
    rows = 2 if plain else 1
    tallest = max(v.hu.shape[0] * v.spacing_mm[0] / (v.hu.shape[1] * v.spacing_mm[1]) for v in views)
    panel_in = 3.1
    figure = new_figure(panel_in * len(views), min(2.0, max(0.4, tallest)) * panel_in * rows + 0.26)
    figure.set_facecolor(_BACKGROUND)
    axes = figure.subplots(rows, len(views), squeeze=False)
    figure.subplots_adjust(0.004, 0.004, 0.996, 1 - 0.26 / figure.get_figheight(), wspace=0.012, hspace=0.012)
    for column, view in enumerate(views):
        for row in range(rows):
            draw_slice(axes[row, column], view, window, masks=row == rows - 1)
        axes[0, column].set_title(view.title, color="white", fontsize=8.5, pad=4)
    return png(figure)


def draw_slice(axes: Axes, view: SliceView, window: HuWindow = LUNG_WINDOW, *, masks: bool = True) -> None:
    """Draw one slice into Matplotlib axes, in millimetres, with side marks and a scale bar of 50 mm."""
    height, width = view.hu.shape
    size_mm = (width * view.spacing_mm[1], height * view.spacing_mm[0])
    extent = (0.0, size_mm[0], size_mm[1], 0.0)
    axes.imshow(window.scale(view.hu), cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="bilinear")
    if masks:
        _draw_masks(axes, view, extent)
    axes.set_xlim(0, size_mm[0])
    axes.set_ylim(size_mm[1], 0)
    axes.set_aspect("equal")
    axes.set_axis_off()
    _draw_marks(axes, size_mm)


def _draw_marks(axes: Axes, size_mm: tuple[float, float]) -> None:
    """R and L in the upper corners, a bar of 50 mm below; white on a dark rim, to be read on air and on bone."""
    from matplotlib.patheffects import withStroke

    rim = [withStroke(linewidth=2.5, foreground=_BACKGROUND)]
    white: dict[str, Any] = {"color": "white", "path_effects": rim}
    for x, mark, align in ((0.02, "R", "left"), (0.98, "L", "right")):
        axes.text(x, 0.975, mark, transform=axes.transAxes, ha=align, va="top", fontsize=10, weight="bold", **white)
    if size_mm[0] > 80:
        x_mm, y_mm = size_mm[0] * 0.03, size_mm[1] * 0.965
        axes.plot([x_mm, x_mm + 50], [y_mm, y_mm], lw=2, solid_capstyle="butt", **white)
        axes.text(x_mm, y_mm - size_mm[1] * 0.02, "50 mm", fontsize=7, va="bottom", **white)


def _draw_masks(axes: Axes, view: SliceView, extent: tuple[float, float, float, float]) -> None:
    from matplotlib.colors import to_rgb

    if view.infiltrate is not None and view.infiltrate.any():
        fill = np.zeros((*view.hu.shape, 4))
        fill[..., :3] = to_rgb(INFILTRATE)
        fill[..., 3] = 0.38 * (view.infiltrate > 0)
        axes.imshow(fill, extent=extent, interpolation="nearest")
        _outline(axes, view.infiltrate > 0, view.spacing_mm, INFILTRATE, 0.9)
    if view.lungs is not None:
        _outline(axes, (view.lungs > 0) & (view.lungs != 2), view.spacing_mm, RIGHT_LUNG, 1.1)
        _outline(axes, view.lungs == 2, view.spacing_mm, LEFT_LUNG, 1.1)
    if view.truth is not None:
        _outline(axes, view.truth > 0, view.spacing_mm, TRUTH, 1.0)


def _outline(axes: Axes, mask: NDArray[np.bool_], spacing_mm: tuple[float, float], colour: str, width: float) -> None:
    if not mask.any():
        return
    padded = np.pad(mask, 1).astype(np.float32)  # closes outlines at the picture's edge
    y = (np.arange(padded.shape[0]) - 0.5) * spacing_mm[0]
    x = (np.arange(padded.shape[1]) - 0.5) * spacing_mm[1]
    axes.contour(x, y, padded, levels=[0.5], colors=[colour], linewidths=[width])


def choose_slices(lungs: NDArray[np.uint8], infiltrate: NDArray[np.uint8], count: int = 3) -> list[int]:
    """Which axial slices to show: spread over the scan, and with much infiltrate.

    The slices with infiltrate are cut into `count` runs of equal length, and of each the slice with most
    infiltrate is taken, so that the worst slice of the scan is always shown. Without (enough) infiltrate the rest is
    spread evenly over the lungs, or over the scan when there are none.

    Args:
        lungs: (i, j, k) labels.
        infiltrate: (i, j, k) labels.
        count: slices wanted.

    Returns:
        Slice numbers k from the feet upwards, sorted, at most `count` and at most as many as the scan has.

    Raises:
        InputError: when `count` is below 1.
    """
    if count < 1:
        raise InputError(f"at least one slice must be shown, got {count}")
    area = np.count_nonzero(infiltrate, axis=(0, 1))
    infected = np.flatnonzero(area)
    chosen = {int(run[np.argmax(area[run])]) for run in np.array_split(infected, count) if run.size}
    with_lung = np.flatnonzero(np.count_nonzero(lungs, axis=(0, 1)))
    every = np.arange(area.size)
    for candidates in (with_lung, every):
        wanted = np.linspace(0, 1, count + 2)[1:-1]
        for position in np.round(wanted * (candidates.size - 1)).astype(int) if candidates.size else ():
            if len(chosen) < count:
                chosen.add(int(candidates[position]))
    for k in every:
        if len(chosen) < min(count, area.size):
            chosen.add(int(k))
    return sorted(chosen)


def case_views(
    volume: Volume, lungs: Mask, infiltrate: Mask, truth: Mask | None = None, *, slices: Sequence[int] | None = None
) -> list[SliceView]:
    """The chosen slices of a scan, highest first, all cut to the same box around what is marked.

    Args:
        lungs: its lungs.
        infiltrate: its infiltrates.
        truth: what a reader annotated.
        slices: slice numbers k; by default those of `choose_slices`.

    Raises:
        GeometryError: when a mask lies on another grid than the scan.
    """
    masks = [m for m in (lungs, infiltrate, truth) if m is not None]
    for mask in masks:
        volume.grid.require_same_space(mask.grid)
    chosen = choose_slices(lungs.labels, infiltrate.labels) if slices is None else slices
    step_i, step_j, _ = volume.spacing_mm
    window = _window(masks, (step_j, step_i))
    views = []
    for k in sorted(chosen, reverse=True):
        z_mm = volume.grid.world([(volume.grid.shape[0] - 1) / 2, (volume.grid.shape[1] - 1) / 2, k])[2]
        drawn = [_axial(mask.labels, k)[window] for mask in masks]
        views.append(
            SliceView(
                _axial(volume.hu, k)[window],
                lungs=_sides(drawn[0], lungs),
                infiltrate=drawn[1],
                truth=drawn[2] if truth is not None else None,
                spacing_mm=(step_j, step_i),
                title=f"slice {k + 1} of {volume.grid.shape[2]}, z = {z_mm:.0f} mm".replace("-", "\N{MINUS SIGN}"),
            )
        )
    return views


def draw_object(axes: Sequence[Axes], image: Any) -> None:
    """Draw slices of a scan, of a mask, or of a segmentation on its scan, one into each of the axes."""
    scan = image if isinstance(image, Volume) else getattr(image, "scan", None)
    own = [image, *(getattr(image, name, None) for name in ("lungs", "infiltrate"))]
    masks = [mask for mask in own if isinstance(mask, Mask)]
    grid = masks[0].grid if scan is None else scan.grid
    if scan is None:
        air = np.broadcast_to(np.float32(LUNG_WINDOW.low_hu), grid.shape)
        scan = Volume(air, grid, grid)
    lungs = next((mask for mask in masks if any("lung" in name for name in mask.names.values())), None)
    infiltrate = next((mask for mask in masks if mask is not lungs), None)
    none = Mask.empty(grid, {1: "none"})
    chosen = choose_slices((lungs or none).labels, (infiltrate or none).labels, len(axes))
    views = case_views(scan, lungs or none, infiltrate or none, slices=chosen)
    for place, view in zip(axes, views, strict=False):
        draw_slice(place, view)
        place.set_title(view.title, fontsize=7)
    for place in axes[len(views) :]:
        place.set_axis_off()


def _axial(array: NDArray[Any], k: int) -> NDArray[Any]:
    return np.ascontiguousarray(to_slices(array[:, :, k : k + 1])[0])


def _sides(labels: NDArray[np.uint8], lungs: Mask) -> NDArray[np.uint8]:
    """Labels with 2 for the left lung by name and 1 for every other."""
    left = [n for n, name in lungs.names.items() if name == "left lung"]
    return np.where(labels == 0, 0, np.where(np.isin(labels, left), 2, 1)).astype(np.uint8)


def _window(masks: Sequence[Mask], spacing_mm: tuple[float, float]) -> tuple[slice, slice]:
    """Rows and columns around everything marked, with a margin; the whole slice when nothing is."""
    marked = np.zeros(masks[0].grid.shape[:2], bool)
    for mask in masks:
        marked |= mask.labels.any(axis=2)
    flat = to_slices(marked[:, :, None])[0]
    if not flat.any():
        return slice(None), slice(None)
    ranges = []
    for axis, step_mm in enumerate(spacing_mm):
        used = np.flatnonzero(flat.any(axis=1 - axis))
        margin = int(np.ceil(_MARGIN_MM / step_mm))
        ranges.append(slice(max(0, int(used[0]) - margin), int(used[-1]) + 1 + margin))
    return ranges[0], ranges[1]
