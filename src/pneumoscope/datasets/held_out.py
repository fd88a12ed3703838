"""The paper's draw by slices, with some patients kept out of it: who was seen in training, and who was not.

A draw by slices puts neighbours of training slices into the test set. What that adds to a score can be told from one
training, if a few patients are set aside before the draw: their slices are test slices like the others, of people the
network has never seen.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd

from pneumoscope.datasets.splits import COLUMNS, Shortage, balanced_draw
from pneumoscope.errors import DatasetError

Exposure = Literal["seen", "unseen"]


def held_out_draw(
    table: pd.DataFrame,
    share: float,
    n_train: int = 440,
    n_val: int = 60,
    seed: int = 0,
    *,
    shortage: Shortage = "error",
) -> pd.DataFrame:
    """`balanced_draw` over all but a share of the patients; every slice with lung of the others is a test slice.

    The patients set aside are drawn from those with infiltrate, the only ones on whom F1 can be told. The draw among
    the remaining patients is `balanced_draw` with the same seed. The result does not depend on the order of rows.

    Args:
        table: as for `balanced_draw`.
        share: of all patients, in (0, 1); at least one is set aside and at least one with infiltrate is left.
        n_train: as for `balanced_draw`.
        n_val: likewise.
        seed: of both draws.
        shortage: as for `balanced_draw`.

    Returns:
        The split table ``case,slice,patient,part``, sorted by case and slice; `exposure` tells who is who.

    Raises:
        DatasetError: a share outside (0, 1), fewer than two patients with infiltrate, or as `balanced_draw`.
    """
    if not 0 < share < 1:
        raise DatasetError(f"the share of patients held out lies between 0 and 1, got {share}")
    rows = table[table["has_lung"].astype(bool)] if "has_lung" in table else table
    patient = rows["patient"].astype(str)
    infected = np.array(sorted(patient[rows["has_infiltrate"].astype(bool)].unique()), dtype=object)
    if len(infected) < 2:
        raise DatasetError(
            f"holding patients out needs at least two with infiltrate, the set has {len(infected)}; use more patients"
        )
    wanted = min(max(1, round(share * patient.nunique())), len(infected) - 1)
    aside = set(np.random.default_rng([seed, 1]).permutation(infected)[:wanted])
    held = patient.isin(aside)
    drawn = balanced_draw(rows[~held], n_train, n_val, seed, shortage=shortage)
    whole = rows.loc[held, ["case", "slice", "patient"]].assign(part="test")
    split = pd.concat([drawn, whole], ignore_index=True)[list(COLUMNS)]
    return split.sort_values(["case", "slice"], kind="stable").reset_index(drop=True)


def exposure(split: pd.DataFrame) -> dict[str, Exposure]:
    """Of each patient with test slices, whether others of their slices were trained on or chose the epoch.

    Validation slices count as seen: they decided which weights were kept.
    """
    patient = split["patient"].astype(str)
    used = set(patient[split["part"].isin(("train", "val"))])
    tested = sorted(set(patient[split["part"] == "test"]))
    return {name: "seen" if name in used else "unseen" for name in tested}
