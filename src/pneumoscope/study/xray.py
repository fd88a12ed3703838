"""Run an X-ray study: pictures, draws, baselines, networks, probes, tables, figures, report; resumable.

All tests are asked after all choices were made on the validation part. What cannot be run (Model_3 without its file,
adults without their set, a source that cannot be left out) is left out and said, never replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pneumoscope.io.files import read_json, write_frame
from pneumoscope.study import xray_data
from pneumoscope.study.analysis.mitigations import AS_PAPER, all_mitigations, plain_recipe
from pneumoscope.study.analysis.shortcuts import baselines, held_out, probes
from pneumoscope.study.base import Study
from pneumoscope.study.learners.classifier import Job, stage_folder, train_job
from pneumoscope.study.scores.classification import (
    LINEAGES,
    matrix,
    picture_scores,
    probe_means,
    reliabilities,
    remedies,
)
from pneumoscope.study.scores.table import write_scores
from pneumoscope.study.xray_repeat import Repeat, make_repeat, write_splits
from pneumoscope.study.xray_report import draw_all


class XrayStudy(Study):
    """Networks, baselines and probes on radiographs, in one draw or several."""

    def check(self) -> None:
        """See `Study`."""
        self.roots, self.weights = xray_data.check_roots(self.experiment, self.options.data)
        self.listed = xray_data.list_cases(self.roots)
        self.predicted: dict[str, pd.DataFrame] = {}

    def prepare(self) -> None:
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

    def mark(self) -> str:
        """Never synthetic."""
        return ""

    @cached_property
    def networks(self) -> dict[str, tuple[Job, Repeat]]:
        """Every network of every draw by the name of its stage, those first that others begin with."""
        return {
            stage_folder(self.folder, job, trial).name: (job, trial)
            for trial in self.trials
            for job in self._jobs(trial, self.folder, self.weights)
        }

    def stages(self) -> dict[str, tuple[str, ...]]:
        """See `Study`."""
        return {name: (job.start.name,) if job.start else () for name, (job, _) in self.networks.items()}

    def make_stage(self, name: str) -> None:
        """Train a network and let it predict every test."""
        job, trial = self.networks[name]
        self.predicted[name] = train_job(
            job, trial, self.supply, self.folder, device=self.device, progress=self.progress
        )
        self.lap(job.name)

    def make(self) -> None:
        """Baselines and probes, then every network."""
        regressions = [baselines(trial, self.supply, self.progress) for trial in self.trials]
        self.probed = pd.concat([probes(trial, self.supply, self.progress) for trial in self.trials])
        self.lap("baselines and probes")
        super().make()
        parts = []
        for trial, regression in zip(self.trials, regressions, strict=True):
            parts += [regression, *(self.predicted[name] for name, (_, t) in self.networks.items() if t is trial)]
        self.per_case = pd.concat(parts, ignore_index=True)

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

    def score(self) -> dict[str, pd.DataFrame]:
        """See `Study`."""
        cells = matrix(self.per_case, self.experiment)
        table = remedies(self.per_case, self.probed, self.experiment)
        self.tables = {"per_case": self.per_case, "matrix": cells, "remedies": table, "probes": self.probed}
        for name, found in self.tables.items():
            write_frame(self.folder / f"{name}.csv", found)
        scoring = self.experiment.scoring
        write_scores(
            self.folder,
            picture_scores(self.per_case, self.experiment),
            LINEAGES,
            reliabilities(self.per_case, self.experiment),
            n=scoring.interval_resamples,
            seed=scoring.interval_seed,
            level=scoring.interval_level,
        )
        draw_all(self.experiment, self.folder, self.trials[0], self.supply, self.per_case, table)
        return {"remedies": table, "matrix": cells}

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
        timing = {path.parent.name: read_json(path) for path in sorted(self.folder.glob("stages/*/timing.json"))}
        return {
            "pool": {
                "pictures": len(pool.cases),
                "patients": len({case.patient for case in pool.cases}),
                "groups": len(set(pool.groups)),
                "copies": len(pool.pairs),
                "unreadable": [list(pair) for pair in pool.unreadable[:50]],
            },
            "sets": [_set_row(trial, part) for trial in self.trials for part in _sets(trial)],
            "matrix": self.tables["matrix"].to_dict(orient="records"),
            "remedies": self.tables["remedies"].to_dict(orient="records"),
            "probes": probe_means(self.probed).to_dict(orient="records"),
            "timing": timing,
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
