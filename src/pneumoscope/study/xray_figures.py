"""Pictures of an X-ray study: what networks are shown, who is taken for whom, what is left of the accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pneumoscope.experiments.xray_schema import XrayExperiment
from pneumoscope.io.files import write_bytes
from pneumoscope.models.cards import read_card
from pneumoscope.reports.figures import new_figure, png
from pneumoscope.study.figures import write_curves
from pneumoscope.study.xray_arms import AS_PAPER, views
from pneumoscope.study.xray_data import Supply
from pneumoscope.study.xray_trial import HEALTHY, OWN_TEST, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, NETWORK, CHANCE = "#0b6bcb", "#e8650a", "#59626d"


def draw_all(
    experiment: XrayExperiment,
    folder: Path,
    trial: Trial,
    supply: Supply,
    per_case: pd.DataFrame,
    table: pd.DataFrame,
) -> None:
    """Write every figure of a study."""
    (folder / "figures").mkdir(exist_ok=True)
    write_views(experiment, trial, supply, folder / "figures" / "views.png")
    write_confusions(experiment, per_case, folder / "figures" / "confusion.png")
    write_remedies(table, folder / "figures" / "remedies.png")
    for history in sorted(folder.glob("stages/*_seed0/history.csv")):
        name = history.parent.name.removesuffix("_seed0")
        card = read_card(history.parent)
        found = pd.read_csv(history)
        write_curves(found, int(card["training"]["best_epoch"]), name, folder / "figures" / f"curves_{name}.png")


def write_views(experiment: XrayExperiment, trial: Trial, supply: Supply, path: Path) -> None:
    """One picture of each source as every view shows it."""
    rows = np.concatenate([trial.one.rows, trial.adults.rows if trial.adults is not None else trial.one.rows[:0]])
    sources = trial.pool.sources(rows)
    names = sorted(set(sources.tolist()))
    chosen = np.array([rows[np.flatnonzero(sources == name)[0]] for name in names], np.int64)
    shown = views(experiment)
    figure = new_figure(1.45 * len(shown) + 0.6, 1.6 * len(names) + 0.3)
    panels = figure.subplots(len(names), len(shown), squeeze=False)
    for column, (view, recipe) in enumerate(shown.items()):
        made, where = supply.get(recipe, chosen)
        for row, (name, place) in enumerate(zip(names, where, strict=True)):
            axes: Axes = panels[row][column]
            axes.imshow(made.pixels[place], cmap="gray", vmin=0, vmax=255)
            axes.set_xticks([])
            axes.set_yticks([])
            if row == 0:
                axes.set_title(view, fontsize=8)
            if column == 0:
                axes.set_ylabel(name, fontsize=8)
    figure.tight_layout()
    write_bytes(path, png(figure))


def write_confusions(experiment: XrayExperiment, per_case: pd.DataFrame, path: Path) -> None:
    """Of every classifier with the paper's input: its own test, with the healthy adults as a row of their own."""
    classes = list(experiment.data.classes_1)
    plain = per_case[(per_case["arm"] == AS_PAPER) & (per_case["without"] == "") & (per_case["model"] != "Model_0")]
    models = list(dict.fromkeys(plain["model"]))
    columns = min(4, len(models))
    lines = -(-len(models) // columns)
    figure = new_figure(2.7 * columns + 0.9, 2.5 * lines)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels[len(models) :]:
        axes.set_visible(False)
    for axes, model in zip(panels, models, strict=False):
        own = plain[plain["model"] == model]
        groups = [(name, own[(own["test"] == OWN_TEST) & (own["label"] == name)]) for name in classes]
        groups += [(HEALTHY, own[own["test"] == HEALTHY])]
        groups = [(name, part) for name, part in groups if len(part)]
        share = np.array([[float((part["said"] == c).mean()) for c in classes] for _, part in groups])
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for i, j in np.ndindex(*share.shape):
            colour = "white" if share[i, j] > 0.6 else "black"
            axes.text(j, i, f"{share[i, j]:.0%}", ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(range(len(classes)), classes, fontsize=7)
        axes.set_yticks(range(len(groups)), [name for name, _ in groups], fontsize=7)
        axes.set_title(model, fontsize=9)
        axes.set_xlabel("called", fontsize=8)
    figure.tight_layout()
    write_bytes(path, png(figure))


def write_remedies(table: pd.DataFrame, path: Path) -> None:
    """Per classifier and remedy: accuracy on the same sources beside what tells whether it means anything."""
    kinds = (
        ("accuracy", "accuracy, same sources", OURS, "o"),
        ("adults_only", "adults only: COVID-19 or healthy", NETWORK, "s"),
        ("adults_only_unseen", "the same, source never seen", "#7b3fb5", "D"),
    )
    names = [
        m if a == AS_PAPER else f"{m}, {a.replace('_', ' ')}" for m, a in zip(table["model"], table["arm"], strict=True)
    ]
    figure = new_figure(7.2, 1.1 + 0.27 * len(table))
    axes = figure.subplots()
    place = np.arange(len(table))[::-1]
    for column, label, colour, marker in kinds:
        axes.plot(table[column], place, marker, color=colour, label=label, ms=5)
    axes.axvline(0.5, color=CHANCE, lw=0.8, ls=":")
    axes.text(0.5, len(table) - 0.35, "guessing between two", fontsize=7, ha="center", color=CHANCE)
    axes.set_yticks(place, names, fontsize=8)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(-0.7, len(table) + 0.1)
    axes.grid(axis="x", lw=0.3)
    axes.legend(fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncol=3)
    figure.tight_layout()
    write_bytes(path, png(figure))
