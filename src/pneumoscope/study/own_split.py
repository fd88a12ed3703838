"""Which of a user's patients teach, choose the epoch, and test; patients stay whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pneumoscope.datasets.case import Case
from pneumoscope.datasets.folds import group_folds
from pneumoscope.datasets.groups import group_members, members_of
from pneumoscope.errors import InputError
from pneumoscope.io.files import write_text
from pneumoscope.study.own_common import TrainingPlan


@dataclass(frozen=True)
class Parts:
    """Cases by what they are for.

    Attributes:
        train: to learn from.
        val: to choose the epoch on.
        test: scored once, at the end; may be empty.
    """

    train: list[Case]
    val: list[Case]
    test: list[Case]

    def write(self, path: Path) -> None:
        """``dataset,case,patient,part`` as a table."""
        parts = (("train", self.train), ("val", self.val), ("test", self.test))
        lines = [f"{c.dataset},{c.case},{c.patient},{part}" for part, cases in parts for c in cases]
        write_text(path, "\n".join(["dataset,case,patient,part", *lines]) + "\n")


def split_by_plan(cases: Sequence[Case], plan: TrainingPlan) -> Parts:
    """The test patients are drawn first, then the others are split; without a test share as `split_patients`.

    Raises:
        InputError: too few patients.
    """
    if not plan.test_share:
        train, val = split_patients(cases, plan.validation_share, plan.seed)
        return Parts(train, val, [])
    patients = len(set(group_members(members_of(cases)).values()))
    if patients < 3:
        raise InputError(
            f"a test part beside training and validation needs at least 3 patients, there are {patients}; add some, "
            "fill in the column patient, or leave out --test-share"
        )
    rest, test = split_patients(cases, plan.test_share if patients > 3 else 1 / 3, plan.seed)
    share = min(0.5, plan.validation_share / (1 - plan.test_share))
    train, val = split_patients(rest, share, plan.seed)
    return Parts(train, val, test)


def split_patients(cases: Sequence[Case], share: float, seed: int) -> tuple[list[Case], list[Case]]:
    """Two parts, the second about `share` of the cases (rounded to one of two, three, four ... parts).

    Raises:
        InputError: all scans are of one patient.
    """
    groups = group_members(members_of(cases))
    patients = len(set(groups.values()))
    if patients < 2:
        raise InputError(
            f"{len(cases)} scans of one patient cannot be split into training and validation; add patients, or fill "
            "in the column patient of the table"
        )
    fold = group_folds(groups, min(patients, max(2, round(1 / share))), seed, validation=False)[0]
    held = {member.case for member in fold.test}
    return [c for c in cases if c.case not in held], [c for c in cases if c.case in held]
