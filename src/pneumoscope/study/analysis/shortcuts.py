"""What the pictures give away without disease: a probe that names the source, a regression on a few hundred numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.metrics.classification import bootstrap_scores
from pneumoscope.progress import Progress, silent
from pneumoscope.study.learners.logistic import CORNERS, THUMBNAILS, Shown, choose_logistic
from pneumoscope.study.xray_data import ImageCache
from pneumoscope.study.xray_repeat import Repeat, TrainingSet, balance, plain_recipe, views


def probes(repeat: Repeat, supply: ImageCache, progress: Progress = silent) -> pd.DataFrame:
    """How well the source is predicted from each view, beside what guessing would give.

    Questions: all sources together; and where one class comes from several sources, that class alone, so that no
    disease can help. Sources are balanced in training, and the score is the mean over sources of the share classified
    correctly (chance is one over their number). Patients of the test part are not in training.
    """
    shown, rows = Shown(repeat, supply), []
    questions = _questions(repeat)
    for done, (view, recipe) in enumerate(views(repeat.experiment).items(), start=1):
        for question, taught, test, truth, names in questions:
            kind = CORNERS if view == "four corners" else THUMBNAILS
            recipe_here = plain_recipe(repeat.experiment) if kind == CORNERS else recipe
            fitted = choose_logistic(
                (shown.of(recipe_here, taught.train, kind), taught.train_labels),
                (shown.of(recipe_here, taught.val, kind), taught.val_labels),
                len(names),
                repeat.experiment.honest.penalties,
            )
            said = fitted.probability(shown.of(recipe_here, test, kind)).argmax(axis=1)
            rows.append(_probe_row(repeat, view, question, names, test, truth, said))
        progress("source probes", done, len(views(repeat.experiment)))
    return pd.DataFrame(rows)


Question = tuple[str, TrainingSet, NDArray[np.int64], NDArray[np.int64], list[str]]


def _questions(repeat: Repeat) -> list[Question]:
    """Each question with its taught, test rows, their sources by number, and the sources' names."""
    sets = [repeat.one, *([repeat.adults] if repeat.adults is not None else [])]
    rows = np.concatenate([s.rows for s in sets])
    parts = np.concatenate([s.parts for s in sets])
    labels = np.array([repeat.pool.cases[int(i)].label for i in rows], dtype=np.str_)
    source = repeat.pool.sources(rows)
    everything = np.ones(len(rows), bool)
    asked = [("all sources", everything), *((f"{name} only", labels == name) for name in repeat.one.classes)]
    questions: list[Question] = []
    for name, chosen in asked:
        names = sorted(set(source[chosen].tolist()))
        number = np.searchsorted(np.array(names), source) if names else np.zeros(len(rows), np.int64)
        cells = {part: chosen & (parts == part) for part in ("train", "val", "test")}
        if len(names) < 2 or any(len(set(source[cells[p]].tolist())) < len(names) for p in ("train", "test")):
            continue
        train = np.flatnonzero(cells["train"])
        train = train[balance(number[train], ["" for _ in train], repeat.seed)]
        taught = TrainingSet(rows[train], number[train], rows[cells["val"]], number[cells["val"]])
        questions.append((name, taught, rows[cells["test"]], number[cells["test"]], names))
    return questions


def _probe_row(
    repeat: Repeat,
    view: str,
    question: str,
    names: list[str],
    test: NDArray[np.int64],
    truth: NDArray[np.int64],
    said: NDArray[np.int64],
) -> dict[str, Any]:
    scoring = repeat.experiment.scoring
    groups = repeat.pool.group_of(test).tolist()
    found = bootstrap_scores(
        truth,
        said,
        groups,
        names,
        n=scoring.interval_resamples,
        seed=scoring.interval_seed,
        level=scoring.interval_level,
    )["recall"]
    return {
        "seed": repeat.number,
        "question": question,
        "view": view,
        "sources": " ".join(names),
        "told_right": found.mean,
        "low": found.low,
        "high": found.high,
        "chance": 1 / len(names),
        "n_images": len(test),
        "n_groups": len(set(groups)),
    }
