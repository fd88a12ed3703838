"""The page of a study on volumes, made from what lies in its folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from pneumoscope.io.files import read_json
from pneumoscope.recipes.volumes import VolumeExperiment
from pneumoscope.reports.figures import data_uri, new_figure, png
from pneumoscope.study.folder import stage_cards
from pneumoscope.study.scores.volumes import NETWORKS, headline, subject_of
from pneumoscope.study.volumes_data import VALIDATION

COLOURS = {"full": "#0b6bcb", "no-augmentation": "#7a9cc0", "no-preprocessing": "#b58a3c", "plain": "#8a8f98",
           "ensemble": "#2e8540", "threshold": "#e8650a"}  # fmt: skip
SHORT = {"no-augmentation": "no\naugment.", "no-preprocessing": "no\nprepar."}


def volumes_page(experiment: VolumeExperiment, folder: Path) -> dict[str, Any]:
    """What the page shows; also draws `figures/`."""
    per_case, matrix = pd.read_csv(folder / "per_case.csv"), pd.read_csv(folder / "matrix.csv")
    paper = pd.read_csv(folder / "paper.csv")
    (folder / "figures").mkdir(exist_ok=True)
    pictures = {"dice": _dice_figure(per_case), "curves": _curves_figure(folder)}
    for name, picture in pictures.items():
        (folder / "figures" / f"{name}.png").write_bytes(picture)
    return {
        "section": "study_volumes.html",
        "research_only": "Methods compared on few scans: it does not show how a model performs on your patients.",
        "cards": stage_cards(folder, sorted(path.parent.name for path in folder.glob("stages/*/card.json"))),
        "rows": headline(matrix),
        "structures": _structures(matrix),
        "paper": paper.where(paper.notna(), None).to_dict(orient="records") if paper["ours"].notna().any() else [],
        "unmatched": int(paper["ours"].isna().sum()),
        "costs": _costs(folder),
        "pictures": {name: data_uri(picture) for name, picture in pictures.items()},
    }


def _structures(matrix: pd.DataFrame) -> list[dict[str, Any]]:
    """Median Dice of each structure in validation."""
    part = matrix[(matrix["test"] == VALIDATION) & (matrix["metric"] == "dice")]
    columns = ["k", "setting", "structure", "n_cases", "median", "fold_mean", "sd"]
    return [dict(zip(columns, row, strict=True)) for row in part[columns].itertuples(index=False)]


def _costs(folder: Path) -> list[dict[str, Any]]:
    """Training time, time per scan and peak of the process after each model, in the order they were run."""
    found = []
    for path in sorted(folder.glob("stages/*/scored.json"), key=lambda p: p.stat().st_mtime_ns):
        cost = read_json(path)
        cost = {name: cost[name] for name in ("training_seconds", "seconds_per_scan", "process_peak_gigabytes")}
        found.append({"stage": path.parent.name, **cost})
    return found


def _dice_figure(per_case: pd.DataFrame) -> bytes:
    """Dice of the infection (or lungs) per scan, a box per k, setting and test set."""
    subject = subject_of(per_case)
    rows = per_case[per_case["structure"] == subject]
    tests = list(dict.fromkeys(rows["test"]))
    figure = new_figure(3.4 * len(tests) + 0.8, 3.6)
    panels = figure.subplots(1, len(tests), squeeze=False, sharey=True)[0]
    for panel, test in zip(panels, tests, strict=True):
        part = rows[rows["test"] == test]
        cells = list(dict.fromkeys(zip(part["k"], part["setting"], strict=True)))
        cells.sort(key=lambda cell: (cell[0], list(COLOURS).index(cell[1])))
        for place, (k, setting) in enumerate(cells):
            values = part[(part["k"] == k) & (part["setting"] == setting)]["dice"].to_numpy()
            panel.boxplot(values, positions=[place], widths=0.6, showfliers=False,
                          medianprops={"color": COLOURS[setting], "lw": 2})  # fmt: skip
            panel.plot([place] * len(values), values, "o", ms=3, color=COLOURS[setting], alpha=0.5)
        names = [(f"{k}-fold\n" if k > 1 else "") + SHORT.get(s, s) for k, s in cells]
        panel.set_xticks(range(len(cells)), names, fontsize=6)
        panel.set_title("validation" if test == VALIDATION else test, fontsize=9)
        panel.set_ylim(-0.02, 1.02)
    panels[0].set_ylabel(f"Dice of {subject}, a dot per scan")
    figure.tight_layout()
    return png(figure)


def _curves_figure(folder: Path) -> bytes:
    """Training and validation loss of every model, a panel per setting (Mueller 2021, Figure 5)."""
    histories = {path.parent.name: pd.read_csv(path) for path in sorted(folder.glob("stages/*/history.csv"))}
    kinds = [s for s in NETWORKS if any(_setting(name) == s for name in histories)]
    figure = new_figure(3.4 * len(kinds) + 0.4, 3.0)
    for panel, kind in zip(figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0], kinds, strict=True):
        for name, history in histories.items():
            if _setting(name) == kind:
                panel.plot(history["epoch"], history["train_loss"], color="#c0392b", lw=0.9, alpha=0.7)
                panel.plot(history["epoch"], history["val_loss"], color="#1f9bb5", lw=0.9, alpha=0.7)
        panel.set_title(kind, fontsize=9)
        panel.set_xlabel("epoch")
        lines = panel.get_lines()[:2]
        panel.legend(lines, ["training", "validation"][: len(lines)], fontsize=7, frameon=False)
    figure.axes[0].set_ylabel("loss")
    figure.tight_layout()
    return png(figure)


def _setting(stage: str) -> str:
    return next((s for s in NETWORKS[1:] if stage.endswith(f"-{s}")), "full")
