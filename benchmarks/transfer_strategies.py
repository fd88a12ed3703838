"""The tables of docs/concepts/transfer-strategies.md, from finished studies of the recipe transfer-slices.

    pneumoscope study run transfer-slices --data slices=ROOT -o runs/seed-0
    pneumoscope study run transfer-slices --data slices=ROOT -o runs/seed-1 --seed 1
    python benchmarks/transfer_strategies.py runs/seed-0 runs/seed-1

Scores are Dice of all test slices of a patient together, averaged over patients, then over studies; intervals draw
studies and patients. Nothing is trained or predicted here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from pneumoscope.metrics.intervals import over_seeds_and_sets
from pneumoscope.recipes.schema import Experiment, Stage
from pneumoscope.study.folder import read_experiment
from pneumoscope.study.scores.table import read_table

PerPatient = dict[str, list[float]]


class Study:
    """One study folder: Dice by stage, set and patient."""

    def __init__(self, folder: Path) -> None:
        self.experiment: Experiment = read_experiment(folder)
        table = read_table(folder / "per_case.csv")
        table = table[table["part"] == "test"] if "part" in table else table
        summed = table.groupby(["stage", "test", "patient"])[["tp", "fp", "fn"]].sum()
        drawn = summed[summed["tp"] + summed["fn"] > 0]
        self.dice = 2 * drawn["tp"] / (2 * drawn["tp"] + drawn["fp"] + drawn["fn"])
        lungs = folder / "supplied_lungs.csv"
        self.lungs = pd.read_csv(lungs) if lungs.is_file() else pd.DataFrame()

    def strategies(self) -> dict[str, Stage]:
        """The last stage of every strategy, in the order of the chain."""
        last: dict[str, Stage] = {}
        for stage in self.experiment.stages.chain:
            if stage.strategy:
                last[stage.strategy] = stage
        return last

    def patients(self, stage: str, test: int) -> pd.Series:
        """Dice of each patient."""
        return self.dice[stage, test]

    def best_before(self, stage: Stage, test: int, *, since_learnt: bool) -> str:
        """The earlier stage of the lineage with the highest mean Dice on a set.

        With `since_learnt` only stages count that had been trained on the set.
        """
        earlier = self.experiment.lineage(stage.name)[:-1]
        if since_learnt:
            earlier = earlier[next(i for i, s in enumerate(earlier) if s.site == test) :]
        return max((s.name for s in earlier), key=lambda name: float(self.patients(name, test).mean()))


def shared(studies: list[Study]) -> list[str]:
    """Strategies that every study has, in the order of the first."""
    return [name for name in studies[0].strategies() if all(name in study.strategies() for study in studies)]


def values(series: pd.Series) -> PerPatient:
    """One value per patient, as the intervals take them."""
    return {str(name): [float(value)] for name, value in series.items()}


def shown(parts: list[list[PerPatient]], *, signed: bool = False) -> str:
    """Mean and 95 % interval over studies, sets and patients."""
    found = over_seeds_and_sets(parts)
    number = "{:+.3f}" if signed else "{:.3f}"
    ends = "" if found.low != found.low else f" ({number} to {number})".format(found.low, found.high)
    return number.format(found.mean) + ends


def head(*cells: str) -> None:
    """The first two lines of a Markdown table."""
    print("\n| " + " | ".join(cells) + " |\n" + "|---" * len(cells) + "|")


def final_table(studies: list[Study], names: dict[int, str]) -> None:
    """Dice after all stages, and how far it is from joint training."""
    head("after all stages", *names.values(), "mean of sets", "less joint")
    for strategy in shared(studies):
        last = [(s, s.strategies()[strategy].name, s.strategies()["joint"].name) for s in studies]
        cells = [shown([[values(s.patients(stage, n))] for s, stage, _ in last]) for n in names]
        whole = shown([[values(s.patients(stage, n)) for n in names] for s, stage, _ in last])
        gap = [[values(s.patients(stage, n) - s.patients(joint, n)) for n in names] for s, stage, joint in last]
        print(f"| {strategy} | " + " | ".join([*cells, whole, shown(gap, signed=True)]) + " |")


def lost_table(studies: list[Study], names: dict[int, str], *, since_learnt: bool) -> None:
    """Dice lost on the earlier sets against the best earlier stage; negative is gained."""
    earlier = list(names)[:-1]
    since = "since it was learnt" if since_learnt else "against any earlier stage"
    head(f"lost {since}", *(names[n] for n in earlier), "mean")
    for strategy in shared(studies):
        lost: list[list[PerPatient]] = []
        for s in studies:
            stage = s.strategies()[strategy]
            best = {n: s.best_before(stage, n, since_learnt=since_learnt) for n in earlier}
            lost.append([values(s.patients(best[n], n) - s.patients(stage.name, n)) for n in earlier])
        cells = [shown([[one[place]] for one in lost], signed=True) for place in range(len(earlier))]
        print(f"| {strategy} | " + " | ".join([*cells, shown(lost, signed=True)]) + " |")


def matrix(studies: list[Study], names: dict[int, str]) -> None:
    """Every stage on every set."""
    head("stage", *names.values())
    for stage in studies[0].experiment.stages.chain:
        cells = [shown([[values(s.patients(stage.name, n))] for s in studies]) for n in names]
        print(f"| {stage.name} | " + " | ".join(cells) + " |")


def lung_table(studies: list[Study]) -> None:
    """What supplied lungs change, mean over studies; nothing where all sets have masks."""
    tables = [s.lungs for s in studies if len(s.lungs)]
    if tables:
        head("stage", "with supplied lungs", "without", "difference")
        for name, rows in pd.concat(tables).groupby("stage", sort=False):
            means = rows[["dice_with", "dice_without", "difference"]].mean()
            print(f"| {name} | {means.iloc[0]:.3f} | {means.iloc[1]:.3f} | {means.iloc[2]:+.3f} |")


def main(folders: Iterable[str]) -> None:
    """Print the tables as Markdown."""
    studies = [Study(Path(folder)) for folder in folders]
    names = {site.number: site.label for site in studies[0].experiment.data.sites}
    final_table(studies, names)
    lost_table(studies, names, since_learnt=True)
    lost_table(studies, names, since_learnt=False)
    matrix(studies, names)
    lung_table(studies)


if __name__ == "__main__":
    main(sys.argv[1:])
