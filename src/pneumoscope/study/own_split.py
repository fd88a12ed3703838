"""Which of a user's patients teach, choose the epoch, and test; patients stay whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pneumoscope.datasets.case import Case
from pneumoscope.datasets.folds import share_fold
from pneumoscope.datasets.groups import group_members, members_of
from pneumoscope.errors import InputError
from pneumoscope.io.files import write_csv
from pneumoscope.study.own_common import TrainingPlan

TOLERATED = 0.03
"""Difference between a share that was asked for and the one of the split that needs no word."""


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
        rows = [(c.dataset, c.case, c.patient, part) for part, cases in parts for c in cases]
        write_csv(path, ("dataset", "case", "patient", "part"), rows)

    def remark(self, plan: TrainingPlan) -> str:
        """What became of the shares of the plan where patients that stay whole do not allow them; else empty."""
        total = len(self.train) + len(self.val) + len(self.test)
        shares = (("validation_share", plan.validation_share, self.val), ("test_share", plan.test_share, self.test))
        return "; ".join(
            f"{name} {wanted:g} was asked for, {len(part)} of {total} scans ({len(part) / total:.2f}) were held out, "
            "as patients stay whole"
            for name, wanted, part in shares
            if abs(len(part) / total - wanted) > TOLERATED
        )


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
    train, val = split_patients(rest, plan.validation_share / (1 - plan.test_share), plan.seed)
    return Parts(train, val, test)


def split_patients(cases: Sequence[Case], share: float, seed: int) -> tuple[list[Case], list[Case]]:
    """Two parts, the second about `share` of the cases, as near as whole patients allow.

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
    fold = share_fold(groups, share, seed)
    held = {member.case for member in fold.test}
    return [c for c in cases if c.case not in held], [c for c in cases if c.case in held]
