"""Several studies side by side; of transfer studies, what each way of retraining gains on the new set and loses.

A run is a study folder; runs of the same strategy with other seeds are one line. All numbers are F1 per slice with
infiltrate, as in the papers; gains and losses are taken slice by slice on the same test slices, and intervals draw
patients and seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.errors import InputError
from pneumoscope.metrics.intervals import Interval, over_seeds_and_sets
from pneumoscope.recipes.schema import Experiment
from pneumoscope.recipes.stages import SLICES, STRATEGIES, split_external
from pneumoscope.study.folder import read_experiment, read_if_there
from pneumoscope.study.scores.matrix import Matrix, PerPatient, read_matrix
from pneumoscope.study.scores.table import INTERVAL_ROUNDS, compare_scores, read_scores, rounds_of, with_ends

COLUMNS = (
    "strategy", "sets", "runs", "seeds", "gain", "gain_low", "gain_high", "loss", "loss_low", "loss_high",
    "below_best", "below_best_low", "below_best_high", "mean_f1",
    "mean_f1_low", "mean_f1_high", "mean_f1_spread", "new_f1", "old_f1", "never_seen_f1", "ahead", "ahead_low",
    "ahead_high", "patients",
)  # fmt: skip
"""Columns of comparison.csv, a row per strategy and order of sets.

- ``gain``: F1 on the newest set now minus before the retraining.
- ``loss``: mean over earlier sets of F1 of their own best earlier stage minus F1 now; above 0 is lost.
- ``below_best``: the same against the best stage of any strategy with the same seed on that set. It does not flatter a
  strategy that learnt little and so had little to lose.
- ``mean_f1``: mean over all sets learnt; its ``spread`` is the standard deviation over seeds.
- ``never_seen_f1``: mean over the other sets.
- ``ahead``: mean F1 over the sets learnt minus that of `BASELINE` with the same seed and order.
"""

CELL_COLUMNS = (
    "run", "stage", "test", "structure", "metric", "n_patients", "mean", "mean_low", "mean_high", "difference",
    "difference_low", "difference_high",
)  # fmt: skip
"""Columns of comparison.csv, cell by cell."""

BASELINE = "plain"  # Retraining on the new set alone, as the papers do: what every strategy is compared with


@dataclass(frozen=True, eq=False)
class Run:
    """One retrained stage of one run."""

    strategy: str  # how it was retrained; behind the name of the system, where that is not ``slices``
    sets: tuple[int, ...]  # numbers of the sets in the order learnt
    seed: int  # of the training
    stage: str
    matrix: Matrix  # of its study
    folder: Path  # where the study lies
    synthetic: bool = False  # whether its patients are made up from the seed of its data

    def gaps(self, test: int, against: str, matrix: Matrix | None = None) -> PerPatient:
        """F1 of the stage minus F1 of `against` (of another study where one is given), by patient, slice by slice."""
        mine = self.matrix.slices(self.stage, test, common=True)
        theirs = (matrix or self.matrix).slices(against, test, common=True)
        both = mine.merge(theirs[["case", "slice", "f1"]], on=["case", "slice"], suffixes=("", "_before"))
        both = both[(both["tp"] + both["fn"]) > 0]
        both = both.assign(gap=both["f1"] - both["f1_before"])
        return self.named({str(name): group["gap"].tolist() for name, group in both.groupby("patient")})

    def scores(self, test: int) -> PerPatient:
        """F1 of each test slice with infiltrate, by patient."""
        return self.named(self.matrix.scores(self.stage, test, common=True))

    def named(self, values: PerPatient) -> PerPatient:
        """Synthetic patients of another seed are other patients, whatever their names."""
        seed = self.matrix.experiment.data.phantom_seed
        return {f"{seed}/{name}": v for name, v in values.items()} if self.synthetic else values

    @property
    def before(self) -> str:
        """The stage it began from."""
        return self.matrix.experiment.lineage(self.stage)[-2].name

    def best_before(self, test: int) -> str:
        """The earlier stage of its lineage with the highest F1 on a set."""
        *earlier, _ = self.matrix.experiment.lineage(self.stage)
        means = {s.name: _mean_of(self.matrix.scores(s.name, test, common=True)) for s in earlier}
        return max(means, key=lambda name: -math.inf if math.isnan(means[name]) else means[name])


def _mean_of(values: PerPatient) -> float:
    flat = [v for one in values.values() for v in one]
    return float(np.mean(flat)) if flat else math.nan


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Every retrained stage of every study folder.

    Raises:
        InputError: no study, one given twice, one that is not scored, studies of other sets or scored in other ways,
            or a strategy with the same order of sets and seed in two folders.
    """
    given = different_folders(folders)
    runs: list[Run] = []
    first: Experiment | None = None
    for folder in given:
        experiment = read_experiment(folder, Experiment)
        first = first or experiment
        _require_alike(first, experiment, folder)
        matrix = read_matrix(folder, experiment)
        for stage in experiment.stages.chain:
            if stage.start is None:
                continue
            sets = tuple(experiment.trained_on(stage.name))
            strategy = "+".join(sorted(experiment.strategy_of(stage.name), key=list(STRATEGIES).index))
            if split_external(stage.system)[0]:
                strategy = f"{stage.name}, trained elsewhere"
            elif stage.system != SLICES:
                strategy = f"{stage.system}: {strategy}"
            runs.append(Run(strategy, sets, experiment.training.seed, stage.name, matrix, folder, is_synthetic(folder)))
    _require_once(runs)
    return runs


def different_folders(folders: Sequence[str | Path]) -> list[Path]:
    """The folders, each given once.

    Raises:
        InputError: none, or one twice.
    """
    given = [Path(folder).resolve() for folder in folders]
    twice = sorted({str(p) for p in given if given.count(p) > 1})
    if not given or twice:
        raise InputError(
            f"{'given twice: ' + twice[0] if twice else 'no runs given'}; expected different study folders"
        )
    return given


def _require_alike(first: Experiment, other: Experiment, folder: Path) -> None:
    for what, a, b in (
        ("sets", *([(s.number, s.dataset, s.label) for s in e.data.sites] for e in (first, other))),
        ("scoring", *((e.scoring.threshold, e.scoring.slices) for e in (first, other))),
        ("splits", *(e.split.by for e in (first, other))),
    ):
        if a != b:
            raise InputError(f"has other {what} ({b}) than the first run ({a}); compare like with like", path=folder)


def _require_once(runs: Sequence[Run]) -> None:
    seen: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        experiment = run.matrix.experiment
        key = (run.strategy, run.sets, run.seed, experiment.split.seed, experiment.data.phantom_seed)
        if key in seen and seen[key].folder != run.folder:
            raise InputError(
                f"repeats {run.strategy} over sets {run.sets} with seed {run.seed} of {seen[key].folder.name}",
                path=run.folder,
            )
        seen.setdefault(key, run)


def compare(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row per strategy and order of sets, see `COLUMNS`, with `per_set` beside it; longest orders first."""
    groups: dict[tuple[tuple[int, ...], str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.sets, run.strategy), []).append(run)
    order = sorted(groups, key=lambda key: (-len(key[0]), key[0], key[1] != BASELINE, key[1]))
    return [_row(key[1], key[0], groups[key], groups.get((key[0], BASELINE), []), runs) for key in order]


def _row(
    strategy: str, sets: tuple[int, ...], runs: list[Run], baseline: list[Run], every: Sequence[Run]
) -> dict[str, Any]:
    learnt, new = list(dict.fromkeys(sets)), sets[-1]
    old = [n for n in learnt if n != new]
    others = [n for n in runs[0].matrix.tests if n not in learnt]
    gain = _interval(runs, [[run.gaps(new, run.before)] for run in runs])
    kept = _interval(runs, [[run.gaps(n, run.best_before(n)) for n in old] for run in runs])
    below = _interval(runs, [[run.gaps(n, *_best(run, n, every)) for n in old] for run in runs])
    mean = _interval(runs, [[run.scores(n) for n in learnt] for run in runs])
    by_run = [[_mean_of(run.scores(n)) for n in learnt] for run in runs]
    pairs = [(run, b) for run in runs for b in baseline if strategy != BASELINE and _same_draw(run, b)]
    ahead = _interval(runs, [[run.gaps(n, b.stage, b.matrix) for n in learnt] for run, b in pairs])
    return {
        "strategy": strategy,
        "sets": "-".join(map(str, sets)),
        "runs": len(runs),
        "seeds": " ".join(str(run.seed) for run in runs),
        **with_ends("gain", gain),
        **_lost("loss", kept),
        **_lost("below_best", below),
        **with_ends("mean_f1", mean),
        "mean_f1_spread": float(np.std(np.mean(by_run, axis=1), ddof=1)) if len(runs) > 1 else math.nan,
        "new_f1": _interval(runs, [[run.scores(new)] for run in runs]).mean,
        "old_f1": _interval(runs, [[run.scores(n) for n in old] for run in runs]).mean,
        "never_seen_f1": _interval(runs, [[run.scores(n) for n in others] for run in runs]).mean,
        **with_ends("ahead", ahead),
        "patients": mean.n_patients,
        "per_set": [_per_set(runs, n, new) for n in runs[0].matrix.tests],
        "stages": [run.stage for run in runs],
    }


def _lost(name: str, gained: Interval) -> dict[str, float]:
    return {name: 0.0 - gained.mean, f"{name}_low": 0.0 - gained.high, f"{name}_high": 0.0 - gained.low}


def _best(run: Run, test: int, every: Sequence[Run]) -> tuple[str, Matrix]:
    """The stage with the highest F1 on a set among all runs of the same draw, first trainings too."""
    alike = {id(other.matrix): other.matrix for other in every if _same_draw(run, other)}
    stages = [(name, matrix) for matrix in alike.values() for name in matrix.stages]
    means = [_mean_of(matrix.scores(name, test, common=True)) for name, matrix in stages]
    return stages[max(range(len(stages)), key=lambda k: -math.inf if math.isnan(means[k]) else means[k])]


def _per_set(runs: list[Run], test: int, new: int) -> dict[str, Any]:
    """One set: F1 with its interval, per seed, and the change since the best earlier stage (or the stage before)."""
    f1 = _interval(runs, [[run.scores(test)] for run in runs])
    change = [[run.gaps(test, run.before if test == new else run.best_before(test))] for run in runs]
    return {
        "test": test,
        **with_ends("f1", f1),
        "by_seed": {str(run.seed): _mean_of(run.scores(test)) for run in runs},
        **with_ends("change", _interval(runs, change)),
        "patients": f1.n_patients,
    }


def _same_draw(run: Run, other: Run) -> bool:
    """Whether two runs share seed, split and synthetic patients, so that slices can be compared one by one."""
    a, b = run.matrix.experiment, other.matrix.experiment
    return (run.seed, a.split, a.data.phantom_seed) == (other.seed, b.split, b.data.phantom_seed)


def _interval(runs: list[Run], values: list[list[PerPatient]]) -> Interval:
    return over_seeds_and_sets(values, **rounds_of(runs[0].matrix.experiment.scoring))


Compared = tuple[dict[str, Any], Sequence[str], str, dict[str, Any]]
"""What stands in comparison.json, columns of comparison.csv, template, and what the page is given beside."""


def compare_retraining(folders: Sequence[Path], measures: Sequence[str]) -> Compared:
    """Transfer studies by what each way of retraining gains and loses, with a picture; where nothing is retrained, cell
    by cell.

    Raises:
        InputError: as `read_runs`.
    """
    from pneumoscope.study.figures import comparison_png

    runs = read_runs(folders)
    if not runs:
        return compare_cells(different_folders(folders), measures)
    rows, experiment = compare(runs), runs[0].matrix.experiment
    result = {
        "recipes": sorted({run.matrix.experiment.recipe for run in runs}),
        "runs": [str(folder) for folder in folders],
        "sets": {str(s.number): s.label for s in experiment.data.sites},
        "measure": "F1 per test slice with infiltrate",
        "split_by": sorted({run.matrix.experiment.split.by for run in runs}),
        "rows": rows,
        "sentence": sentence(rows),
    }
    level = experiment.scoring.interval_level * 100
    extra = {"title": "Ways of retraining compared", "picture": comparison_png(rows), "level": level}
    return result, COLUMNS, "comparison.html", extra


def compare_cells(folders: Sequence[Path], measures: Sequence[str]) -> Compared:
    """Studies cell by cell with the first of them, see `scores.table.compare_scores`.

    Raises:
        InputError: two folders of one name, or a study without `scores.csv`.
    """
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        raise InputError("runs are called by the name of their folder, and two have the same; rename one of them")
    tables = dict(zip(names, map(read_scores, folders), strict=True))
    rows = compare_scores(tables, measures, n=INTERVAL_ROUNDS)
    apart = [row for row in rows if row["difference_low"] > 0 or row["difference_high"] < 0]
    measured = sum(not math.isnan(row["difference"]) for row in rows)
    result = {
        "recipes": sorted({read_experiment(folder).recipe for folder in folders}),
        "runs": [str(folder) for folder in folders],
        "rows": rows,
        "sentence": f"{len(apart)} of {measured} cells differ from {names[0]} by an interval that leaves out 0"
        + (f", {math.ceil(0.05 * measured)} of them expected by chance alone." if apart else "."),
    }
    return result, CELL_COLUMNS, "scores_comparison.html", {"title": "Studies compared", "first": names[0]}


def is_synthetic(folder: Path) -> bool:
    """Whether all data of a study are made up."""
    return bool(read_if_there(folder / "study.json").get("synthetic"))


def sentence(rows: Sequence[dict[str, Any]]) -> str:
    """What was found over the longest order of sets, in plain words."""
    longest = [row for row in rows if row["sets"] == rows[0]["sets"] and not math.isnan(row["mean_f1"])]
    if not longest:
        return "No strategy could be scored."
    best = max(longest, key=lambda row: row["mean_f1"])
    text = (
        f"Retrained through sets {best['sets'].replace('-', ', ')}, {best['strategy']} has the highest mean F1 over "
        f"them, {best['mean_f1']:.3f}: {_signed(best['gain'])} on the newest, {_signed(-best['loss'])} on the earlier "
        "ones against their own best."
    )
    plain = next((row for row in longest if row["strategy"] == BASELINE), None)
    if plain is None or plain is best:
        return text
    text += (
        f" Plain retraining, as in the papers, has {plain['mean_f1']:.3f}: {_signed(plain['gain'])} and "
        f"{_signed(-plain['loss'])}."
    )
    drawn = "patients and seeds are" if best["runs"] > 1 else "patients are"
    if best["ahead_low"] > 0:
        text += f" The difference between the two stays above 0 when {drawn} drawn again."
    else:
        text += " The difference between the two may be chance: its interval holds 0 or cannot be computed."
    return text if best["runs"] > 1 else f"{text} With one training each, another seed may turn the order."


def _signed(value: float) -> str:
    return "not measurable" if math.isnan(value) else f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")
