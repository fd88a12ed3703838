"""X-ray studies: baselines, networks and probes on radiographs, in one draw or several.

All tests are asked after all choices were made on the validation part. What cannot be run (Model_3 without its file,
adults without their set, a source that cannot be left out) is left out and said, never replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.io.files import read_json
from pneumoscope.jobs.stamp import stamp
from pneumoscope.metrics.classification import bootstrap_scores
from pneumoscope.progress import Progress, silent
from pneumoscope.study import xray_data
from pneumoscope.study.base import Modality
from pneumoscope.study.learners.base import Classifier
from pneumoscope.study.learners.classifier import ClassifierLearner, NetworkStage
from pneumoscope.study.learners.logistic import (
    CORNERS,
    THUMBNAILS,
    BaselineStage,
    RegressionLearner,
    Shown,
    choose_logistic,
)
from pneumoscope.study.scores.classification import (
    LINEAGES,
    matrix,
    picture_scores,
    probe_means,
    reliabilities,
    remedies,
)
from pneumoscope.study.scores.table import Scores, forgetting, kept_table, rounds_of
from pneumoscope.study.xray_data import ImageCache
from pneumoscope.study.xray_page import draw_all, xray_page
from pneumoscope.study.xray_repeat import (
    AS_PAPER,
    Repeat,
    TrainingSet,
    all_mitigations,
    balance,
    make_repeat,
    plain_recipe,
    views,
    write_splits,
)

PREDICTIONS = "predictions"  # Table of a stage: its predictions of every picture of its tests


LEARNERS = {NetworkStage: ClassifierLearner, BaselineStage: RegressionLearner}


class Xray(Modality):
    """Radiographs of several sources, drawn and split once or several times."""

    title = "X-ray study"
    measures = ("right", "called_positive")

    def check(self) -> None:
        """See `Modality`."""
        self.roots, self.weights = xray_data.check_roots(self.experiment, self.options.data)
        self.listed = xray_data.list_cases(self.roots)
        self.made: dict[str, Classifier] = {}

    def read(self) -> None:
        """Read the pictures, draw, and split."""
        experiment = self.experiment
        pool = xray_data.read_pool(experiment, self.listed, self.folder, self.progress)
        self.repeats = repeats = [
            make_repeat(experiment, pool, repeat) for repeat in range(experiment.training.repeats)
        ]
        for repeat in repeats:
            write_splits(repeat, self.folder / "splits")
        self._note_left_out(repeats[0], self.roots, self.weights)
        rows = [part.rows for t in repeats for part in (t.one, t.adults) if part is not None]
        few = np.unique(np.concatenate([*rows, *(t.sick for t in repeats)]))
        plain = plain_recipe(experiment) if repeats[0].zero is not None else None
        self.supply = xray_data.ImageCache(pool, self.folder / "data", few, plain, self.progress)

    @cached_property
    def plan(self) -> dict[str, NetworkStage | BaselineStage]:
        """Every stage by its name: of each repeat the baselines, then the networks, those first that others need."""
        stages: list[NetworkStage | BaselineStage] = []
        for repeat in self.repeats:
            stages += [BaselineStage(repeat), *self._networks(repeat, self.weights)]
        return {stage.name: stage for stage in stages}

    def stages(self) -> dict[str, tuple[str, ...]]:
        """See `Modality`."""
        return {name: tuple(filter(None, [getattr(stage, "start", "")])) for name, stage in self.plan.items()}

    def train(self, name: str) -> None:
        """Train a network, or fit the baselines of a repeat."""
        stage = self.plan[name]
        context = replace(self.context, supply=self.supply)
        self.made[name] = LEARNERS[type(stage)](context).make(stage)

    def score(self, name: str) -> pd.DataFrame:
        """What a classifier predicts of every picture of its tests."""
        made = self.made.pop(name)
        wanted = stamp("xray predictions", revision=2, weights=made.sha256, tests=made.tests)
        return kept_table(
            made.folder, PREDICTIONS, wanted, lambda: made.predict(self.device), resume=self.resume,
            progress=self.progress,
        )  # fmt: skip

    def _note_left_out(self, repeat: Repeat, roots: Mapping[str, Path], weights: Path | None) -> None:
        stages = self.experiment.training.stages or ()
        if "Model_3" in stages and weights is None:
            from pneumoscope.models.weights import PUBLISHED

            known = PUBLISHED["resnet50"]
            self.left_out.append(
                f"Model_3: no file of ImageNet weights was given; fetch {next(iter(known.files))} from {known.home} "
                f"and give --data {xray_data.RESNET}=FILE"
            )
        if repeat.adults is None:
            name = self.experiment.data.adults
            why = "has too few patients" if name in roots else f"was not given (--data {name}=ROOT)"
            self.left_out.append(f"healthy adults and the remedies that learn from them: {name} {why}")
        for source in repeat.covid_sources:
            if source not in repeat.held_out:
                self.left_out.append(f"COVID-19 of {source} held out: too few pictures are left without it")

    def _networks(self, repeat: Repeat, weights: Path | None) -> list[NetworkStage]:
        """Every network of a repeat, those first that others start from."""
        arms, honest = all_mitigations(self.experiment), self.experiment.honest
        wanted, plain = self.experiment.training.stages or (), arms[AS_PAPER]
        zero = NetworkStage(repeat, "Model_0", plain)
        paper = [
            zero,
            NetworkStage(repeat, "Model_1", plain),
            NetworkStage(repeat, "Model_2", plain, start=zero.name),
            *([NetworkStage(repeat, "Model_3", plain, weights=weights)] if weights else []),
        ]
        stages = [stage for stage in paper if stage.model in wanted]
        if honest.network_draws is not None and repeat.number >= honest.network_draws:
            return stages
        chosen = [arms[name] for name in honest.networks or () if repeat.adults is not None or not arms[name].adults]
        stages += [NetworkStage(repeat, "Model_1", arm) for arm in chosen]
        if honest.held_out_networks:
            strict = [arm for arm in chosen if arm.name == "all"]
            stages += [NetworkStage(repeat, "Model_1", a, s) for a in (plain, *strict) for s in repeat.held_out]
        return stages

    def tables(self, per_case: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """``per_case``, ``matrix``, ``remedies`` and ``probes``; figures are drawn beside."""
        probed = pd.concat([probes(repeat, self.supply, self.progress) for repeat in self.repeats])
        table = remedies(per_case, probed, self.experiment)
        draw_all(self.experiment, self.folder, self.repeats[0], self.supply, per_case, table)
        self.written = {"per_case": per_case, "remedies": table, "matrix": matrix(per_case, self.experiment),
                     "probes": probed}  # fmt: skip
        return self.written

    def scores(self, per_case: pd.DataFrame) -> Scores:
        """See `Modality`."""
        rounds, table = rounds_of(self.experiment.scoring), picture_scores(per_case, self.experiment)
        forgotten = forgetting(table, LINEAGES, self.measures[0], **rounds)
        return Scores(table, reliabilities(per_case, self.experiment), forgotten, rounds)

    @staticmethod
    def page(experiment: Any, folder: Path) -> dict[str, Any]:
        """See `Modality`."""
        return xray_page(experiment, folder)

    def shown(self, tables: Mapping[str, pd.DataFrame]) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
        """What is left of the accuracy."""
        columns = ["model", "arm", "accuracy", "healthy_called_covid", "recall_unseen", "adults_only_unseen"]
        names = (
            "classifier",
            "remedy",
            "accuracy",
            "healthy adults called covid19",
            "unseen covid19 found",
            "adults, unseen",
        )
        return names, tables["remedies"][columns].to_numpy().tolist()

    def summary(self) -> dict[str, Any]:
        """What the page says beside the figures."""
        pool = self.repeats[0].pool
        kept = {name: read_json(self.stage_folder(name) / f"{PREDICTIONS}.json") for name in sorted(self.plan)}
        return {
            "pool": {
                "pictures": len(pool.cases),
                "patients": len({case.patient for case in pool.cases}),
                "groups": len(set(pool.groups)),
                "copies": len(pool.pairs),
                "unreadable": [list(pair) for pair in pool.unreadable[:50]],
            },
            "sets": [
                _set_row(repeat, part)
                for repeat in self.repeats
                for part in [part for part in (repeat.zero, repeat.one, repeat.adults) if part is not None]
            ],
            "matrix": self.written["matrix"].to_dict(orient="records"),
            "remedies": self.written["remedies"].to_dict(orient="records"),
            "probes": probe_means(self.written["probes"]).to_dict(orient="records"),
            "timing": {name: facts["timing"] for name, facts in kept.items() if "timing" in facts},
        }


def _set_row(repeat: Repeat, part: xray_data.SplitSet) -> dict[str, Any]:
    return {
        "name": part.name,
        "seed": repeat.number,
        "classes": {name: int((part.labels == i).sum()) for i, name in enumerate(part.classes)},
        "parts": {name: int((part.parts == name).sum()) for name in ("train", "val", "test")},
        "groups": len(set(repeat.pool.group_of(part.rows).tolist())),
        "leaking_groups": len(part.leaking_groups),
        "notes": list(part.notes),
    }


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
    labels = np.array([case.label for case in repeat.pool.at(rows)], dtype=np.str_)
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
    repeat: Repeat, view: str, question: str, names: list[str], test: NDArray[np.int64], truth: NDArray[np.int64],
    said: NDArray[np.int64],
) -> dict[str, Any]:  # fmt: skip
    groups = repeat.pool.group_of(test).tolist()
    found = bootstrap_scores(truth, said, groups, names, **rounds_of(repeat.experiment.scoring))["recall"]
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
