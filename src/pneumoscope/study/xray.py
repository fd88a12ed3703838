"""X-ray studies: baselines, networks and probes on radiographs, in one draw or several.

All tests are asked after all choices were made on the validation part. What cannot be run (Model_3 without its file,
adults without their set, a source that cannot be left out) is left out and said, never replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pneumoscope.datasets.xray.pictures import pictures_content
from pneumoscope.io.files import read_json
from pneumoscope.jobs.stamp import stamp
from pneumoscope.study import xray_data
from pneumoscope.study.analysis.mitigations import AS_PAPER, all_mitigations, plain_recipe
from pneumoscope.study.analysis.shortcuts import baselines, held_out, probes
from pneumoscope.study.base import Modality
from pneumoscope.study.learners.classifier import PREDICTIONS, Job, predict_tests, stage_folder, train_classifier
from pneumoscope.study.learners.networks import Network
from pneumoscope.study.scores.cells import kept_table
from pneumoscope.study.scores.classification import (
    LINEAGES,
    matrix,
    picture_scores,
    probe_means,
    reliabilities,
    remedies,
)
from pneumoscope.study.scores.table import Scores, forgetting, rounds_of
from pneumoscope.study.xray_page import draw_all, xray_page
from pneumoscope.study.xray_repeat import Repeat, make_repeat, write_splits

BASELINES = "baselines_seed"
"""How the stages begin that are regressions on a few hundred numbers."""


class Xray(Modality):
    """Radiographs of several sources, drawn and split once or several times."""

    title = "X-ray study"
    measures = ("right", "called_positive")

    def check(self) -> None:
        """See `Modality`."""
        self.roots, self.weights = xray_data.check_roots(self.experiment, self.options.data)
        self.listed = xray_data.list_cases(self.roots)
        self.trained: dict[str, Network] = {}

    def read(self) -> None:
        """Read the pictures, draw, and split."""
        experiment = self.experiment
        pool = xray_data.read_pool(experiment, self.listed, self.folder, self.progress)
        self.trials = trials = [make_repeat(experiment, pool, repeat) for repeat in range(experiment.training.repeats)]
        for trial in trials:
            write_splits(trial, self.folder / "splits")
        self._note_left_out(trials[0], self.roots, self.weights)
        rows = [part.rows for t in trials for part in (t.one, t.adults) if part is not None]
        few = np.unique(np.concatenate([*rows, *(t.sick for t in trials)]))
        plain = plain_recipe(experiment) if trials[0].zero is not None else None
        self.supply = xray_data.ImageCache(pool, self.folder / "data", few, plain, self.progress)

    @cached_property
    def networks(self) -> dict[str, tuple[Job, Repeat]]:
        """Every network of every draw by the name of its stage, those first that others begin with."""
        return {
            stage_folder(self.folder, job, trial).name: (job, trial)
            for trial in self.trials
            for job in self._jobs(trial, self.folder, self.weights)
        }

    def stages(self) -> dict[str, tuple[str, ...]]:
        """Of every draw the baselines, then the networks."""
        names: dict[str, tuple[str, ...]] = {}
        for trial in self.trials:
            names[f"{BASELINES}{trial.repeat}"] = ()
            own = {name: job for name, (job, one) in self.networks.items() if one is trial}
            names |= {name: (job.start.name,) if job.start else () for name, job in own.items()}
        return names

    def train(self, name: str) -> None:
        """Train a network; baselines are fitted when they are scored."""
        if name in self.networks:
            job, trial = self.networks[name]
            self.trained[name] = train_classifier(
                job, trial, self.supply, self.folder, device=self.device, resume=self.resume, progress=self.progress
            )

    def score(self, name: str) -> pd.DataFrame:
        """What a classifier says about every picture of its tests."""
        if name in self.networks:
            return predict_tests(
                *self.networks[name], self.trained.pop(name), self.supply, self.folder, device=self.device,
                resume=self.resume, progress=self.progress,
            )  # fmt: skip
        trial = self.trials[int(name.removeprefix(BASELINES))]
        settings = asdict(self.experiment)
        shaped = {part: settings[part] for part in ("data", "pictures", "split", "honest")}
        rows = np.unique(np.concatenate([part.rows for part in _sets(trial)] + [trial.sick]))
        content = pictures_content([trial.pool.cases[int(i)] for i in rows], plain_recipe(self.experiment))
        wanted = stamp(
            "xray baselines", revision=1, settings=shaped, repeat=trial.repeat, seed=trial.seed, data=content
        )
        own = self.folder / "stages" / name
        return kept_table(
            own, PREDICTIONS, wanted, lambda: (baselines(trial, self.supply, self.progress), {}), resume=self.resume,
            progress=self.progress,
        )  # fmt: skip

    def _note_left_out(self, trial: Repeat, roots: Mapping[str, Path], weights: Path | None) -> None:
        stages = self.experiment.training.stages or ()
        if "Model_3" in stages and weights is None:
            from pneumoscope.models.weights import PUBLISHED

            known = PUBLISHED["resnet50"]
            self.left_out.append(
                f"Model_3: no file of ImageNet weights was given; fetch {next(iter(known.files))} from {known.home} "
                f"and give --data {xray_data.RESNET}=FILE"
            )
        if trial.adults is None:
            name = self.experiment.data.adults
            why = "has too few patients" if name in roots else f"was not given (--data {name}=ROOT)"
            self.left_out.append(f"healthy adults and the remedies that learn from them: {name} {why}")
        for source in trial.covid_sources:
            if source not in held_out(trial):
                self.left_out.append(f"COVID-19 of {source} held out: too few pictures are left without it")

    def _jobs(self, trial: Repeat, folder: Path, weights: Path | None) -> list[Job]:
        """Every network of a trial, those first that others begin with."""
        arms, honest = all_mitigations(self.experiment), self.experiment.honest
        stages = self.experiment.training.stages or ()
        plain = arms[AS_PAPER]
        zero = Job("Model_0", plain)
        jobs = [zero] if "Model_0" in stages else []
        if "Model_1" in stages:
            jobs.append(Job("Model_1", plain))
        if "Model_2" in stages:
            jobs.append(Job("Model_2", plain, start=stage_folder(folder, zero, trial)))
        if "Model_3" in stages and weights is not None:
            jobs.append(Job("Model_3", plain, weights=weights))
        if honest.network_draws is not None and trial.repeat >= honest.network_draws:
            return jobs
        chosen = [arms[name] for name in honest.networks or () if trial.adults is not None or not arms[name].adults]
        jobs += [Job("Model_1", arm) for arm in chosen]
        if honest.held_out_networks:
            strict = [arm for arm in chosen if arm.name == "all"]
            jobs += [Job("Model_1", arm, without=s) for arm in (plain, *strict) for s in held_out(trial)]
        return jobs

    def tables(self, per_case: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """``per_case``, ``matrix``, ``remedies`` and ``probes``; figures are drawn beside."""
        probed = pd.concat([probes(trial, self.supply, self.progress) for trial in self.trials])
        table = remedies(per_case, probed, self.experiment)
        draw_all(self.experiment, self.folder, self.trials[0], self.supply, per_case, table)
        self.made = {"per_case": per_case, "remedies": table, "matrix": matrix(per_case, self.experiment),
                     "probes": probed}  # fmt: skip
        return self.made

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
        pool = self.trials[0].pool
        stages = {name: self.folder / "stages" / name for name in sorted(self.networks)}
        return {
            "pool": {
                "pictures": len(pool.cases),
                "patients": len({case.patient for case in pool.cases}),
                "groups": len(set(pool.groups)),
                "copies": len(pool.pairs),
                "unreadable": [list(pair) for pair in pool.unreadable[:50]],
            },
            "sets": [_set_row(trial, part) for trial in self.trials for part in _sets(trial)],
            "matrix": self.made["matrix"].to_dict(orient="records"),
            "remedies": self.made["remedies"].to_dict(orient="records"),
            "probes": probe_means(self.made["probes"]).to_dict(orient="records"),
            "timing": {name: read_json(own / f"{PREDICTIONS}.json")["timing"] for name, own in stages.items()},
        }


def _sets(trial: Repeat) -> list[xray_data.SplitSet]:
    return [part for part in (trial.zero, trial.one, trial.adults) if part is not None]


def _set_row(trial: Repeat, part: xray_data.SplitSet) -> dict[str, Any]:
    return {
        "name": part.name,
        "seed": trial.repeat,
        "classes": {name: int((part.labels == i).sum()) for i, name in enumerate(part.classes)},
        "parts": {name: int((part.parts == name).sum()) for name in ("train", "val", "test")},
        "groups": len(set(trial.pool.group_of(part.rows).tolist())),
        "torn_groups": len(part.torn),
        "notes": list(part.notes),
    }
