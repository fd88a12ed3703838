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

from pneumoscope.experiments.schema import Experiment, Stage
from pneumoscope.metrics.intervals import over_seeds_and_sets
from pneumoscope.study.folder import read_experiment
from pneumoscope.study.scoring import read_per_case

PerPatient = dict[str, list[float]]


class Study:
    """One study folder: Dice by stage, set and patient."""

    def __init__(self, folder: Path) -> None:
        self.experiment: Experiment = read_experiment(folder)
        table = read_per_case(folder / "per_case.csv")
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

    def best_before(self, stage: Stage, test: int) -> str:
        """The earlier stage of the lineage with the highest mean Dice on a set."""
        earlier = self.experiment.lineage(stage.name)[:-1]
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


def main(folders: Iterable[str]) -> None:
    """Print the tables as Markdown."""
    studies = [Study(Path(folder)) for folder in folders]
    first = studies[0].experiment
    sets = [site.number for site in first.data.sites]
    names = {site.number: site.label for site in first.data.sites}
    print("| after all stages | " + " | ".join(names[n] for n in sets) + " | mean of sets | less joint |")
    print("|---" * (len(sets) + 3) + "|")
    for strategy in shared(studies):
        last = [(s, s.strategies()[strategy].name, s.strategies()["joint"].name) for s in studies]
        cells = [shown([[values(s.patients(stage, n))] for s, stage, _ in last]) for n in sets]
        whole = shown([[values(s.patients(stage, n)) for n in sets] for s, stage, _ in last])
        gap = [[values(s.patients(stage, n) - s.patients(joint, n)) for n in sets] for s, stage, joint in last]
        print(f"| {strategy} | " + " | ".join([*cells, whole, shown(gap, signed=True)]) + " |")
    print()
    print("| lost since the best stage before | " + " | ".join(names[n] for n in sets[:-1]) + " |")
    print("|---" * len(sets) + "|")
    for strategy in shared(studies):
        cells = []
        for n in sets[:-1]:
            lost = []
            for s in studies:
                stage = s.strategies()[strategy]
                lost.append([values(s.patients(s.best_before(stage, n), n) - s.patients(stage.name, n))])
            cells.append(shown(lost, signed=True))
        print(f"| {strategy} | " + " | ".join(cells) + " |")
    print()
    print("| study | stage | " + " | ".join(names[n] for n in sets) + " |")
    print("|---" * (len(sets) + 2) + "|")
    for number, s in enumerate(studies):
        for stage in s.experiment.stages.chain:
            cells = [f"{float(s.patients(stage.name, n).mean()):.3f}" for n in sets]
            print(f"| {number} | {stage.name} | " + " | ".join(cells) + " |")
    tables = [s.lungs.assign(study=number) for number, s in enumerate(studies) if len(s.lungs)]
    if tables:
        print("\n| study | stage | with supplied lungs | without | difference |\n|---|---|---|---|---|")
        for row in pd.concat(tables).to_dict(orient="records"):
            print(
                f"| {row['study']} | {row['stage']} | {row['dice_with']:.3f} | {row['dice_without']:.3f} | "
                f"{row['difference']:+.3f} |"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
