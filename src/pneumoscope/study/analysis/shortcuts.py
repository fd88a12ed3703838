"""What the pictures give away without disease: baselines on thumbnails and corners, and a probe that names the source.

All of it is logistic regression on a few hundred numbers: minutes for a whole study, and enough to say whether a high
accuracy means anything.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.datasets.xray.pictures import PictureRecipe, corners, thumbnails
from pneumoscope.metrics.classification import bootstrap_scores
from pneumoscope.progress import Progress, silent
from pneumoscope.study.analysis.mitigations import AS_PAPER, Mitigation, all_mitigations, balance, plain_recipe, views
from pneumoscope.study.learners.logistic import choose_logistic
from pneumoscope.study.xray_data import ImageCache
from pneumoscope.study.xray_repeat import Repeat, TrainingSet, table

THUMBNAILS, CORNERS, NO_LUNGS = "thumbnails", "corners", "no lungs"
BASELINES = (THUMBNAILS, CORNERS, NO_LUNGS)
"""What the regressions are shown: the small picture, its four corners, the small picture with the lungs cut out."""

Features = NDArray[np.float32]


class Shown:
    """Numbers of pictures under a recipe, computed once per recipe."""

    def __init__(self, trial: Repeat, supply: ImageCache) -> None:
        self.trial, self.supply = trial, supply
        self._held: dict[tuple[PictureRecipe, str], tuple[Features, NDArray[np.int64]]] = {}

    def of(self, recipe: PictureRecipe, rows: NDArray[np.int64], kind: str = THUMBNAILS) -> Features:
        """(n, features) of the pool's rows."""
        key = recipe, kind
        if key not in self._held:
            held = self.supply.few
            made, where = self.supply.get(recipe, held)
            honest = self.trial.experiment.honest
            pixels = made.pixels[where]
            if kind == CORNERS:
                found = corners(pixels, recipe.corner_pixels, honest.corner_thumbnail)
            else:
                found = thumbnails(pixels, honest.thumbnail)
            place = np.full(len(self.trial.pool.cases), -1, np.int64)
            place[held] = np.arange(len(held))
            self._held[key] = found, place
        found, place = self._held[key]
        where = place[rows]
        assert (where >= 0).all(), "a picture was asked for that the study does not use"
        return found[where]


def baselines(trial: Repeat, supply: ImageCache, progress: Progress = silent) -> pd.DataFrame:
    """What every baseline says about every test, under every remedy and with each source of COVID-19 held out."""
    shown, frames = Shown(trial, supply), []
    arms = all_mitigations(trial.experiment)
    # held out, the other sources must still give enough to learn and to stop by
    jobs = [(kind, arms[AS_PAPER], "") for kind in (CORNERS, NO_LUNGS)]
    jobs += [(THUMBNAILS, arm, without) for arm in arms.values() for without in ("", *held_out(trial))]
    for done, (kind, arm, without) in enumerate(jobs, start=1):
        if not (arm.adults and trial.adults is None):
            frames.append(_baseline(trial, shown, kind, arm, without))
        progress("baselines", done, len(jobs))
    return pd.concat(frames, ignore_index=True)


def held_out(trial: Repeat) -> list[str]:
    """Sources of COVID-19 that can be left out: there are others, with pictures to learn and to stop by."""
    arm = all_mitigations(trial.experiment)[AS_PAPER]
    positive, found = len(trial.one.classes) - 1, []
    for source in trial.covid_sources:
        lesson = trial.lesson(arm, source)
        if (lesson.train_labels == positive).any() and (lesson.val_labels == positive).any():
            found.append(source)
    return found


def _baseline(trial: Repeat, shown: Shown, kind: str, arm: Mitigation, without: str) -> pd.DataFrame:
    recipe = views(trial.experiment)["lungs cut out"] if kind == NO_LUNGS else arm.recipe
    lesson = trial.lesson(arm, without)

    def numbers(rows: NDArray[np.int64]) -> Features:
        return shown.of(recipe, rows, CORNERS if kind == CORNERS else THUMBNAILS)

    fitted = choose_logistic(
        (numbers(lesson.train), lesson.train_labels),
        (numbers(lesson.val), lesson.val_labels),
        len(trial.one.classes),
        trial.experiment.honest.penalties,
    )
    said = {name: fitted.probability(numbers(rows)) for name, (rows, _) in trial.tests(without).items()}
    return table(trial, kind, arm.name, without, said, trial.one.classes)


def probes(trial: Repeat, supply: ImageCache, progress: Progress = silent) -> pd.DataFrame:
    """How well the source is told from each view, beside what guessing would give.

    Questions: all sources together; and where one class comes from several sources, that class alone, so that no
    disease can help. Sources are balanced in training, and the score is the mean over sources of the share classified
    correctly (chance is one over their number). Patients of the test part are not in training.
    """
    shown, rows = Shown(trial, supply), []
    questions = _questions(trial)
    for done, (view, recipe) in enumerate(views(trial.experiment).items(), start=1):
        for question, lesson, test, truth, names in questions:
            kind = CORNERS if view == "four corners" else THUMBNAILS
            recipe_here = plain_recipe(trial.experiment) if kind == CORNERS else recipe
            fitted = choose_logistic(
                (shown.of(recipe_here, lesson.train, kind), lesson.train_labels),
                (shown.of(recipe_here, lesson.val, kind), lesson.val_labels),
                len(names),
                trial.experiment.honest.penalties,
            )
            said = fitted.probability(shown.of(recipe_here, test, kind)).argmax(axis=1)
            rows.append(_probe_row(trial, view, question, names, test, truth, said))
        progress("source probes", done, len(views(trial.experiment)))
    return pd.DataFrame(rows)


Question = tuple[str, TrainingSet, NDArray[np.int64], NDArray[np.int64], list[str]]


def _questions(trial: Repeat) -> list[Question]:
    """Each question with its lesson, test rows, their sources by number, and the sources' names."""
    sets = [trial.one, *([trial.adults] if trial.adults is not None else [])]
    rows = np.concatenate([s.rows for s in sets])
    parts = np.concatenate([s.parts for s in sets])
    labels = np.array([trial.pool.cases[int(i)].label for i in rows], dtype=np.str_)
    source = trial.pool.sources(rows)
    everything = np.ones(len(rows), bool)
    asked = [("all sources", everything), *((f"{name} only", labels == name) for name in trial.one.classes)]
    questions: list[Question] = []
    for name, chosen in asked:
        names = sorted(set(source[chosen].tolist()))
        number = np.searchsorted(np.array(names), source) if names else np.zeros(len(rows), np.int64)
        cells = {part: chosen & (parts == part) for part in ("train", "val", "test")}
        if len(names) < 2 or any(len(set(source[cells[p]].tolist())) < len(names) for p in ("train", "test")):
            continue
        train = np.flatnonzero(cells["train"])
        train = train[balance(number[train], ["" for _ in train], trial.seed)]
        lesson = TrainingSet(rows[train], number[train], rows[cells["val"]], number[cells["val"]])
        questions.append((name, lesson, rows[cells["test"]], number[cells["test"]], names))
    return questions


def _probe_row(
    trial: Repeat,
    view: str,
    question: str,
    names: list[str],
    test: NDArray[np.int64],
    truth: NDArray[np.int64],
    said: NDArray[np.int64],
) -> dict[str, Any]:
    scoring = trial.experiment.scoring
    groups = trial.pool.group_of(test).tolist()
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
        "seed": trial.repeat,
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
