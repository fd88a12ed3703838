"""The page of an X-ray study and its pictures, from what lies in its folder; every sentence from numbers on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pneumoscope.io.files import write_bytes
from pneumoscope.models.cards import read_card
from pneumoscope.recipes.xray import XrayExperiment
from pneumoscope.reports.figures import data_uri, new_figure, png
from pneumoscope.study.figures import picture_uri, write_curves
from pneumoscope.study.folder import read_result, stage_cards
from pneumoscope.study.xray_data import ImageCache
from pneumoscope.study.xray_repeat import AS_PAPER, HEALTHY, OWN_TEST, Repeat, views

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, NETWORK, CHANCE = "#0b6bcb", "#e8650a", "#59626d"


def draw_all(
    experiment: XrayExperiment,
    folder: Path,
    repeat: Repeat,
    supply: ImageCache,
    per_case: pd.DataFrame,
    table: pd.DataFrame,
) -> None:
    """Write every figure of a study."""
    (folder / "figures").mkdir(exist_ok=True)
    write_views(experiment, repeat, supply, folder / "figures" / "views.png")
    write_confusions(experiment, per_case, folder / "figures" / "confusion.png")
    write_remedies(table, folder / "figures" / "remedies.png")
    for history in sorted(folder.glob("stages/*_seed0/history.csv")):
        name = history.parent.name.removesuffix("_seed0")
        card = read_card(history.parent)
        found = pd.read_csv(history)
        write_curves(found, int(card["training"]["best_epoch"]), name, folder / "figures" / f"curves_{name}.png")


def write_views(experiment: XrayExperiment, repeat: Repeat, supply: ImageCache, path: Path) -> None:
    """One picture of each source as every view shows it."""
    rows = np.concatenate([repeat.one.rows, repeat.adults.rows if repeat.adults is not None else repeat.one.rows[:0]])
    sources = repeat.pool.sources(rows)
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


Row = Mapping[str, Any]

SHORTCUT_FROM = 0.2
"""Share of healthy adults called COVID-19 from which the page says that the classifier does not look at disease."""

NAMED = {
    "thumbnails": "A regression on thumbnails, which show large shadows at most,",
    "corners": "A regression on the four corners, where there is no lung,",
    "no lungs": "A regression on thumbnails with the lungs cut out",
}
"""The baselines as the page calls them."""

TOLD_FROM = {
    "whole picture": "the whole picture",
    "lungs cut out": "the picture with the lungs cut out",
    "four corners": "the four corners",
}
"""Views of the source probe that the page speaks of."""

LIMITS = (
    "Every child is from Guangzhou and every COVID-19 patient is an adult from elsewhere: with these sets nobody can "
    "measure how well COVID-19 is distinguished from other pneumonia. That needs both in adults of the same hospitals.",
    "The adults of the control are from one hospital and their labels were mined from reports. Learnt as normal (the "
    "remedies 'adults' and 'all') their hospital becomes a mark of health, so a low share of false alarms among them "
    "is no proof; look at the sources that were left out.",
    "The lungs are hidden or cut out by one fixed box, not by a mask: some lung stays outside it, some heart inside.",
    "A probe that fails shows only that this probe fails; one that succeeds shows that the source can be read.",
    "Pictures are 8 bit and some were published in articles: compression, cropping and letters differ by source.",
)


def xray_page(experiment: XrayExperiment, folder: Path) -> dict[str, Any]:
    """What the page shows."""
    summary = read_result(folder, "study.json")
    rows = summary["remedies"]
    shown = [row for row in summary["matrix"] if row["seed"] == "all"]
    return {
        "section": "study_xray.html",
        "research_only": "A study of what X-ray classifiers learn. No network made here may be used on patients.",
        "nav": [
            ("left", "What is left"),
            ("paper", "The paper's numbers"),
            ("probe", "Source probe"),
            ("sets", "Sets and splits"),
            ("limits", "Limits"),
        ],
        "verdict": verdict(rows),
        "findings": findings(rows, summary["probes"], summary["sets"]),
        "remedies": rows,
        "unseen": sorted({key for row in rows for key in row if key.startswith("recall_unseen_")}),
        "paper_rows": [r for r in shown if (r["arm"], r["without"], r["test"]) == (AS_PAPER, "", OWN_TEST)],
        "other_rows": [r for r in shown if (r["arm"], r["without"], r["test"]) != (AS_PAPER, "", OWN_TEST)],
        "probes": summary["probes"],
        "limits": LIMITS,
        "cards": stage_cards(folder, sorted(path.parent.name for path in folder.glob("stages/*/card.json"))),
        "views": picture_uri(folder, "views.png"),
        "confusion": picture_uri(folder, "confusion.png"),
        "remedies_picture": picture_uri(folder, "remedies.png"),
        "curves": [
            (p.stem.removeprefix("curves_"), data_uri(p.read_bytes()))
            for p in sorted((folder / "figures").glob("curves_*.png"))
        ],
    }


def verdict(rows: Sequence[Row]) -> dict[str, str]:
    """What a user may conclude, in two or three sentences, and how loud to say it."""
    plain = [r for r in rows if r["arm"] == AS_PAPER]
    networks = [r for r in plain if r["model"].startswith("Model_")] or plain
    best = max(networks, key=lambda r: r["accuracy"])
    who = NAMED.get(best["model"], best["model"])
    text = f"{who} reaches an accuracy of {_percent(best['accuracy'])} on pictures of the same sources"
    wrong = best["healthy_called_covid"]
    if wrong is not None:
        text += f", and calls {_percent(wrong)} of healthy adults from before the pandemic COVID-19"
    text += "."
    for row in plain:
        if row is not best and row["model"] in ("thumbnails", "corners"):
            text += f" {NAMED[row['model']]} reaches {_percent(row['accuracy'])}."
    if wrong is None:
        text += " Without a control of healthy adults nobody can say whether disease or age is seen."
        return {"level": "warning", "title": "Not tested on healthy adults", "text": text}
    if wrong >= SHORTCUT_FROM:
        text += " So the accuracy can be had from age and hospital alone, and says nothing about COVID-19."
        return {"level": "error", "title": "Do not believe the accuracy", "text": text}
    text += " That is one control only; look at the sources left out before concluding anything."
    return {"level": "warning", "title": "One control is passed", "text": text}


def findings(rows: Sequence[Row], probes: Sequence[Row], sets: Sequence[Row]) -> list[dict[str, str]]:
    """Sentences with a title each; topics without numbers are left out."""
    said = [*_probe_words(probes), *_remedy_words(rows), *_split_words(sets)]
    return [{"title": title, "text": text} for title, text in said]


def _probe_words(probes: Sequence[Row]) -> list[tuple[str, str]]:
    found = {(p["question"], p["view"]): p for p in probes}
    texts = []
    for question in dict.fromkeys(p["question"] for p in probes):
        cells = [found[question, view] for view in TOLD_FROM if (question, view) in found]
        parts = [f"{_percent(c['told_right'])} from {TOLD_FROM[c['view']]}" for c in cells]
        guess = _percent(cells[0]["chance"])
        texts.append(
            f"For {question} ({cells[0]['sources'].replace(' ', ', ')}): {', '.join(parts)}; guessing gives {guess}."
        )
    return [("The source can be read from the picture", " ".join(texts))] if texts else []


def _remedy_words(rows: Sequence[Row]) -> list[tuple[str, str]]:
    said = []
    for model in dict.fromkeys(r["model"] for r in rows):
        own = [r for r in rows if r["model"] == model]
        plain = next((r for r in own if r["arm"] == AS_PAPER), None)
        usable = [r for r in own if r["arm"] != AS_PAPER and r["adults_only_unseen"] is not None]
        if plain is None or not usable or plain["adults_only_unseen"] is None:
            continue
        best = max(usable, key=lambda r: r["adults_only_unseen"])
        shown = ("adults_only_unseen", "accuracy", "recall_unseen")
        here, there = ({key: _percent(row[key]) for key in shown} for row in (plain, best))
        text = (
            "Between adults with COVID-19 of a source never seen and healthy adults, where guessing gives 50 %: "
            f"{here['adults_only_unseen']} as the paper, {there['adults_only_unseen']} with the best remedy "
            f"({best['arm']}). Accuracy on the same sources: {here['accuracy']} and {there['accuracy']}. COVID-19 of a "
            f"new source found: {here['recall_unseen']} and {there['recall_unseen']}."
        )
        said.append((f"What is left: {model}", text))
    return said


def _split_words(sets: Sequence[Row]) -> list[tuple[str, str]]:
    leaking = [s for s in sets if s["leaking_groups"]]
    if leaking:
        worst = max(leaking, key=lambda s: s["leaking_groups"])
        text = (
            f"Pictures were split without keeping patients together, as in the paper: in {worst['name']}, draw "
            f"{worst['seed']}, {worst['leaking_groups']} of {worst['groups']} patients (or patients who share a "
            "picture) stand in more than one part. Every accuracy on the same sources is flattered by this."
        )
        return [("The split leaks", text)]
    return [("The split", "Patients, and patients who share a picture, are kept in one part in every draw.")]


def _percent(value: float | None) -> str:
    return "not measured" if value is None or value != value else f"{100 * value:.1f} %"
