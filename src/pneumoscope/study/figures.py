"""The pictures of a study: learning curves, heat maps of F1, examples; and of a comparison of studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.io.files import write_bytes
from pneumoscope.recipes.schema import Experiment
from pneumoscope.reports.figures import INFILTRATE, TRUTH, data_uri, new_figure, png, vectors
from pneumoscope.study.shift_figures import draw_shift

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GOOD_PERCENTILE, BAD_PERCENTILE = 90.0, 10.0
"""Examples stand at these ranks of F1 among the test slices with infiltrate of the set a stage was last trained on."""


@dataclass(frozen=True, eq=False)
class Example:
    """One slice as it is drawn.

    Attributes:
        image: (h, w) first input channel, 0 to 1.
        truth: (h, w) bool, the reader's infiltrate.
        found: (h, w) bool, the network's.
        title: written above.
    """

    image: NDArray[np.floating[Any]]
    truth: NDArray[np.bool_]
    found: NDArray[np.bool_]
    title: str


def picture_uri(folder: Path, name: str) -> str:
    """A figure of a study as a data address; empty where it was never drawn."""
    path = folder / "figures" / name
    return data_uri(path.read_bytes()) if path.is_file() else ""


def write_curves(history: pd.DataFrame, best_epoch: int, title: str, path: Path) -> None:
    """Training and validation loss, and the validation Dice, by epoch; the epoch whose weights were kept is marked."""
    figure = new_figure(5.2, 2.9)
    left = figure.subplots()
    left.plot(history["epoch"], history["train_loss"], color="#59626d", label="training loss")
    left.plot(history["epoch"], history["val_loss"], color="#0b6bcb", label="validation loss")
    left.set_xlabel("epoch")
    left.set_ylabel("loss")
    left.set_yscale("log")
    lines = left.get_lines()
    if "val_dice" in history:
        right = left.twinx()
        lines += right.plot(history["epoch"], history["val_dice"], color="#e8650a", label="validation Dice")
        right.set_ylim(0, 1)
        right.set_ylabel("Dice")
    left.axvline(best_epoch, color="#59626d", lw=0.8, ls=":")
    left.legend(lines, [str(line.get_label()) for line in lines], fontsize=7, frameon=False, loc="center right")
    left.set_title(f"{title}, best epoch {best_epoch}", fontsize=9)
    figure.tight_layout()
    write_bytes(path, png(figure))


def write_heat_map(matrix: pd.DataFrame, experiment: Experiment, path: Path) -> None:
    """F1 of every stage on every test set: ours, and beside it the paper's where the recipe has its table; as PNG, SVG
    and PDF.
    """
    stages = [stage.name for stage in experiment.stages.chain]
    tests = [site.number for site in experiment.data.sites]
    columns = ["f1", "paper_f1"] if experiment.paper else ["f1"]
    figure = new_figure(1.6 + 3.1 * len(columns), 0.9 + 0.42 * len(stages))
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    for axes, column in zip(panels, columns, strict=True):
        table = matrix.pivot(index="stage", columns="test", values=column).reindex(index=stages, columns=tests)
        _heat(axes, table.to_numpy(float), experiment)
        axes.set_xticks(range(len(tests)), [f"set {n}" for n in tests], fontsize=8)
        axes.set_title("F1, this study" if column == "f1" else "F1, the paper's real data", fontsize=9)
        axes.set_yticks(range(len(stages)), stages if axes is panels[0] else [""] * len(stages), fontsize=8)
    figure.tight_layout()
    write_bytes(path, png(figure))
    for kind, drawn in vectors(figure).items():
        write_bytes(path.with_suffix(f".{kind}"), drawn)


def _heat(axes: Axes, values: NDArray[np.float64], experiment: Experiment) -> None:
    axes.imshow(np.ma.masked_invalid(values), cmap="viridis", vmin=0, vmax=1, aspect="auto")
    axes.set_facecolor("#dfe3e8")
    sites = [site.number for site in experiment.data.sites]
    for row, stage in enumerate(experiment.stages.chain):
        seen = experiment.trained_on(stage.name)
        for column, value in enumerate(values[row]):
            text = "" if np.isnan(value) else f"{value:.3f}"
            weight = "bold" if sites[column] in seen[-1:] else "normal"
            colour = "black" if np.isnan(value) or value > 0.6 else "white"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour, weight=weight)
            if sites[column] in seen:  # sets this model has been trained on
                axes.add_patch(_frame(column, row))


def _frame(column: int, row: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.48, row - 0.47), 0.96, 0.94, fill=False, edgecolor="white", lw=1.2)


def write_examples(examples: Sequence[Example], path: Path) -> None:
    """Rows of three pictures, as in the paper's figures: the slice, the reader's infiltrate, the network's."""
    figure = new_figure(7.2, 2.55 * len(examples))
    figure.set_facecolor("#0b0d10")
    rows = figure.subplots(len(examples), 3, squeeze=False)
    figure.subplots_adjust(0.005, 0.005, 0.995, 1 - 0.12 / len(examples), wspace=0.015, hspace=0.12)
    for axes, example in zip(rows, examples, strict=True):
        for panel, mask, colour, name in (
            (axes[0], None, "", "slice"),
            (axes[1], example.truth, TRUTH, "reader"),
            (axes[2], example.found, INFILTRATE, "network"),
        ):
            _panel(panel, example.image, mask, colour)
            panel.text(0.5, 0.02, name, transform=panel.transAxes, color="white", ha="center", fontsize=8)
        axes[1].set_title(example.title, color="white", fontsize=8.5, pad=4)
    write_bytes(path, png(figure))


def _panel(axes: Axes, image: NDArray[Any], mask: NDArray[np.bool_] | None, colour: str) -> None:
    from matplotlib.colors import to_rgb

    axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    if mask is not None and mask.any():
        fill = np.zeros((*mask.shape, 4))
        fill[..., :3] = to_rgb(colour)
        fill[..., 3] = 0.45 * mask
        axes.imshow(fill, interpolation="nearest")
    axes.text(0.02, 0.97, "R", transform=axes.transAxes, color="white", va="top", fontsize=8)
    axes.text(0.98, 0.97, "L", transform=axes.transAxes, color="white", va="top", ha="right", fontsize=8)
    axes.set_axis_off()


def redraw(experiment: Experiment, folder: Path, matrix: pd.DataFrame, best_epochs: Mapping[str, int]) -> None:
    """Draw everything that tables on disk suffice for: heat maps, changes, calibration, appearance and curves."""
    write_heat_map(matrix, experiment, folder / "figures" / "heatmap_f1.png")
    draw_shift(experiment, folder)
    for name, best_epoch in best_epochs.items():
        history = pd.read_csv(folder / "stages" / name / "history.csv")
        write_curves(history, best_epoch, name, folder / "figures" / f"curves_{name}.png")
