"""The published cross-validation of COVID-19-CT-Seg: five groups of four scans (Ma et al., Medical Physics 48, 2021).

Source: the pickled splits in github.com/JunMa11/COVID-19-CT-Seg-Benchmark, Task 1 (train on a group, test on the
other sixteen) and Task1_COVID_82 (train on sixteen, test on the group). Each group holds two Coronacases and two
Radiopaedia scans.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pneumoscope.datasets.folds import Fold
from pneumoscope.datasets.groups import Member
from pneumoscope.errors import DatasetError

DATASET = "covid19ctseg"

MA_GROUPS: tuple[tuple[str, str, str, str], ...] = (
    ("coronacases_008", "coronacases_007", "radiopaedia_36_86526_0", "radiopaedia_4_85506_1"),
    ("coronacases_009", "coronacases_004", "radiopaedia_14_85914_0", "radiopaedia_7_85703_0"),
    ("coronacases_010", "coronacases_001", "radiopaedia_10_85902_1", "radiopaedia_29_86491_1"),
    ("coronacases_003", "coronacases_005", "radiopaedia_40_86625_0", "radiopaedia_27_86410_0"),
    ("coronacases_002", "coronacases_006", "radiopaedia_10_85902_3", "radiopaedia_29_86490_1"),
)
"""The groups. Scans 10_85902_1 and _3 are one patient, and stand in different groups: the published split leaks."""

MaTask = Literal["20/80", "80/20"]


def ma_folds(members: Sequence[Member], task: MaTask = "20/80") -> list[Fold]:
    """The five published folds: ``20/80`` trains on 4 scans and tests on 16, ``80/20`` the other way round.

    There is no validation part: the benchmark trains for a fixed time.

    Raises:
        DatasetError: an unknown task, or cases that are not the twenty of the data set.
    """
    if task not in ("20/80", "80/20"):
        raise DatasetError(f"the published tasks are 20/80 and 80/20, got {task!r}")
    own = {member.case: member for member in members if member.dataset == DATASET}
    published = {case for group in MA_GROUPS for case in group}
    if set(own) != published or len(own) != len(members):
        missing, more = sorted(published - set(own)), sorted({m.case for m in members} - published)
        raise DatasetError(
            f"the published folds are of the 20 scans of {DATASET}; missing {missing[:3]}, not among them {more[:3]}"
        )
    folds = []
    for group in MA_GROUPS:
        four = tuple(own[case] for case in group)
        others = tuple(member for case, member in own.items() if case not in group)
        folds.append(Fold(four, others) if task == "20/80" else Fold(others, four))
    return folds
