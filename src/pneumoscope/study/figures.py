"""Pictures of a study: curves, heat maps of F1, examples, changes, calibration, appearance; and of a comparison."""

from __future__ import annotations

import math
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
from pneumoscope.study.folder import read_if_there

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GOOD_PERCENTILE, BAD_PERCENTILE = 90.0, 10.0
"""Examples stand at these ranks of F1 among the test slices with infiltrate of the set a stage was last trained on."""


@dataclass(frozen=True, eq=False)
class Example:
    """One slice as it is drawn."""

    image: NDArray[np.floating[Any]]  # (h, w) first input channel, 0 to 1
    truth: NDArray[np.bool_]  # (h, w) bool, the reader's infiltrate
    found: NDArray[np.bool_]  # (h, w) bool, the network's
    title: str  # written above


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


COLOURS = (
    "#0b6bcb", "#e8650a", "#1b8a5a", "#a0399c", "#b08900", "#5c6670", "#c3261d", "#0a8f9c", "#7a5c3e", "#3f51b5",
    "#000000", "#e377c2",
)  # fmt: skip
"""One per line; distinguished by colour-blind readers up to the fifth, by their marks beyond."""

MARKS = "osD^vP*XhH<>"

MOST_LINES = 8  # Stages that one picture takes; of studies with more the main chain is drawn


def draw_shift(experiment: Experiment, folder: Path) -> None:
    """Draw what `shift/shift.json` and `matrix.json` of a study hold; nothing where they are absent."""
    figures = folder / "figures"
    found, tables = read_if_there(folder / "shift" / "shift.json"), read_if_there(folder / "matrix.json")
    shown = [stage.name for stage in experiment.stages.chain]
    shown = shown if len(shown) <= MOST_LINES else experiment.main_stages()
    changed = [row for row in tables.get("differences", []) if row["stage"] in shown]
    if changed:
        write_bytes(figures / "changes.png", changes_png(changed))
    if not found:
        return
    calibrated = [row for row in found["calibration"] if row["stage"] in shown]
    if calibrated:
        write_bytes(figures / "calibration.png", calibration_png(calibrated))
    write_bytes(figures / "appearance.png", appearance_png(found["appearance"]))
    if found["lesions"]:
        write_bytes(figures / "lesions.png", lesions_png(found["lesions"], experiment.main_stages()))
    measured = [row for row in found["abstention"] if row["auc"] is not None and row["stage"] in shown]
    if measured:
        write_bytes(figures / "distance.png", distance_png(measured))


def changes_png(differences: Sequence[Mapping[str, Any]]) -> bytes:
    """F1 of each retrained stage minus the stage before it, on each set, with intervals over patients."""
    rows = [r for r in differences if r["kind"] == "step" and r["measure"] == "f1" and r["mean"] is not None]
    figure = new_figure(6.4, 0.9 + 0.27 * len(rows))
    axes = figure.subplots()
    tests = sorted({r["test"] for r in rows})
    for place, row in enumerate(rows):
        colour = COLOURS[tests.index(row["test"]) % len(COLOURS)]
        if row["low"] is not None:
            axes.plot([row["low"], row["high"]], [place, place], color=colour, lw=2)
        axes.plot(row["mean"], place, "o", color=colour, ms=5)
    axes.axvline(0, color="#59626d", lw=0.8)
    _words(axes, x="change of F1 by the retraining (left: lost, right: gained)")
    axes.set_yticks(range(len(rows)), [f"{r['stage']} - {r['against']}, set {r['test']}" for r in rows], fontsize=7.5)
    axes.invert_yaxis()
    figure.tight_layout()
    return png(figure)


def calibration_png(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Reliability curves: how often infiltrate is there against how sure the stage is; a panel per set."""
    tests = sorted({row["test"] for row in rows})
    figure = new_figure(max(3.4, 2.9 * len(tests)), 3.4)
    panels = figure.subplots(1, max(1, len(tests)), squeeze=False)[0]
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    for axes, test in zip(panels, tests, strict=False):
        axes.plot([0, 1], [0, 1], color="#9aa5b1", lw=0.8, ls="--")
        for row in (r for r in rows if r["test"] == test):
            style = _style(stages.index(row["stage"]), row["stage"])
            axes.plot(_floats(row["confidence"]), _floats(row["frequency"]), ms=3.5, lw=1.1, **style)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_aspect("equal")
        _words(axes, f"set {test}", "predicted probability")
    panels[0].set_ylabel("share that is infiltrate", fontsize=8)
    return _with_legend(figure, panels[:1], 6, 0.08)


def appearance_png(looks: Mapping[str, Any]) -> bytes:
    """Histograms of healthy lung and of infiltrate, a line per set."""
    figure = new_figure(7.4, 2.9)
    panels = figure.subplots(1, 2)
    edges = np.array(looks["edges"])
    middle = (edges[:-1] + edges[1:]) / 2
    names = {row["test"]: row["name"] for row in looks["sets"]}
    unit = looks["unit"] + (" (clipped to the first window)" if looks["unit"] == "HU" else "")
    for axes, kind in zip(panels, ("lung", "infiltrate"), strict=True):
        for n, (number, shares) in enumerate(sorted(looks["histograms"].items(), key=lambda item: int(item[0]))):
            label, percent = f"set {number}: {names[int(number)]}", 100 * np.array(_floats(shares[kind]))
            axes.plot(middle, percent, color=COLOURS[n % len(COLOURS)], lw=1.4, label=label)
        axes.set_ylim(0)
        _words(axes, "healthy lung" if kind == "lung" else "infiltrate", unit)
    panels[0].set_ylabel("% of pixels per bin", fontsize=8)
    panels[0].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    return png(figure)


def lesions_png(rows: Sequence[Mapping[str, Any]], stages: Sequence[str]) -> bytes:
    """Share of a lesion's area that is found, by kind of lesion and set, a line per stage of the longest chain."""
    tests = sorted({row["test"] for row in rows})
    kinds = list(dict.fromkeys((row["by"], row["group"]) for row in rows))
    figure = new_figure(7.4, 0.7 + 0.24 * len(kinds))
    panels = figure.subplots(1, len(tests), squeeze=False)[0]
    for axes, test in zip(panels, tests, strict=True):
        for n, stage in enumerate(stages):
            own = {(r["by"], r["group"]): r["found"] for r in rows if r["test"] == test and r["stage"] == stage}
            lift = 0.14 * (n - (len(stages) - 1) / 2)
            found = _floats([own.get(kind) for kind in kinds])
            axes.plot(found, np.arange(len(kinds)) + lift, ls="", ms=5, **_style(n, stage))
        axes.set_xlim(-0.02, 1.02)
        _words(axes, f"set {test}", "share found")
        names = [f"{by}: {group}" for by, group in kinds] if axes is panels[0] else [""] * len(kinds)
        axes.set_yticks(range(len(kinds)), names, fontsize=7)
        axes.set_ylim(len(kinds) - 0.5, -0.5)
        axes.grid(axis="y", color="#dfe3e8", lw=0.6)
    return _with_legend(figure, panels[:1], max(1, len(stages)), 0.06)


def distance_png(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """ROC curves of the distance from the training data for scans of sets never seen."""
    figure = new_figure(3.9, 3.7)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#9aa5b1", lw=0.8, ls="--")
    for n, row in enumerate(rows):
        text = f"{row['stage']}: {row['auc']:.2f}"
        colour = COLOURS[n % len(COLOURS)]
        axes.step(row["false_positive"], row["true_positive"], where="post", color=colour, lw=1.3, label=text)
    _words(axes, x="scans of known sets refused", y="scans of new sets refused")
    axes.legend(fontsize=7, frameon=False, loc="lower right", title="area", title_fontsize=7)
    axes.set_aspect("equal")
    figure.tight_layout()
    return png(figure)


def comparison_png(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Gain on the newest set against loss on the earlier ones, a mark per strategy; a panel per order of sets."""
    orders = list(dict.fromkeys(row["sets"] for row in rows))[:3]
    figure = new_figure(4.1 * len(orders) + 0.3, 4.3)
    panels = figure.subplots(1, len(orders), squeeze=False)[0]
    names = list(dict.fromkeys(row["strategy"] for row in rows))
    for axes, order in zip(panels, orders, strict=True):
        for row in (r for r in rows if r["sets"] == order and not math.isnan(r["gain"] + r["loss"])):
            style = {**_style(names.index(row["strategy"]), row["strategy"]), "ls": "", "ms": 6, "elinewidth": 0.8}
            axes.errorbar(row["loss"], row["gain"], xerr=_reach(row, "loss"), yerr=_reach(row, "gain"), **style)
        axes.axhline(0, color="#9aa5b1", lw=0.8)
        axes.axvline(0, color="#9aa5b1", lw=0.8)
        _words(axes, f"sets {order.replace('-', ', then ')}", "F1 lost on earlier sets (right: worse)")
    panels[0].set_ylabel("F1 gained on the newest set (up: better)", fontsize=8)
    return _with_legend(figure, panels, 4, 0.055)


def _style(number: int, label: str) -> dict[str, Any]:
    """Mark and colour of the n-th line."""
    return {"marker": MARKS[number % len(MARKS)], "color": COLOURS[number % len(COLOURS)], "label": label}


def _words(axes: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Title and axes in the size of these pictures, without a frame above and on the right."""
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _with_legend(figure: Figure, panels: Sequence[Axes], columns: int, line: float) -> bytes:
    """The figure with one legend of all panels below, lines of it being that high; as PNG."""
    marks = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    columns = min(columns, max(1, len(marks)))
    figure.legend(marks.values(), marks.keys(), loc="lower center", ncols=columns, fontsize=7, frameon=False)
    figure.tight_layout(rect=(0, line * math.ceil(len(marks) / columns), 1, 1))
    return png(figure)


def _reach(row: Mapping[str, Any], key: str) -> Any:
    """(2, 1) distances to both ends of the interval; None without one."""
    ends = (row[key] - row[f"{key}_low"], row[f"{key}_high"] - row[key])
    return None if any(math.isnan(v) for v in ends) else np.abs(ends)[:, None]


def _floats(values: Sequence[float | None]) -> list[float]:
    return [math.nan if v is None else float(v) for v in values]
