"""The bounded store of earlier slices, mixed into every epoch of a later training.

Rehearsal (Robins 1995, Catastrophic forgetting, rehearsal and pseudorehearsal, Connection Science 7, 123-146; Chaudhry
et al. 2019, On Tiny Episodic Memories in Continual Learning, arXiv 1902.10486, for how little is enough). Which slices
are kept is a rule, not a draw: patients in turn, and within a patient evenly along the scan.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def choose_store(patients: Sequence[str], infected: Sequence[bool], n: int) -> NDArray[np.intp]:
    """Rows to keep, ascending: at most `n`, spread evenly over patients, and evenly along each patient's slices.

    Slices with infiltrate are kept first; those without fill what is left.

    Args:
        patients: of each slice, slices of a scan in their order.
        infected: whether the slice holds infiltrate.
        n: slices to keep; all when there are no more.
    """
    names, flags = np.asarray(patients, dtype=str), np.asarray(infected, dtype=bool)
    kept = _spread(names, np.flatnonzero(flags), n)
    rest = _spread(names, np.flatnonzero(~flags), n - len(kept))
    return np.sort(np.concatenate([kept, rest])).astype(np.intp)


def _spread(names: NDArray[np.str_], rows: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    """At most n of the rows: patients in turn, each giving rows evenly spaced from its first to its last."""
    owned = {name: rows[names[rows] == name] for name in dict.fromkeys(names[rows])}
    quota = dict.fromkeys(owned, 0)
    left = max(0, min(n, len(rows)))
    while left:
        for name in owned:
            if left and quota[name] < len(owned[name]):
                quota[name] += 1
                left -= 1
    picked = [owned[name][_evenly(len(owned[name]), quota[name])] for name in owned]
    return np.concatenate(picked) if picked else np.zeros(0, np.intp)


def _evenly(n: int, most: int) -> NDArray[np.intp]:
    """Indices of `most` of n things: the middles of as many equal stretches."""
    return np.floor((np.arange(most) + 0.5) * n / max(most, 1)).astype(np.intp)


def equal_shares(earlier: int, earlier_share: float | None) -> list[float]:
    """Shares of an epoch for the new set (first) and each earlier one; None: all alike."""
    share = earlier / (earlier + 1) if earlier_share is None else earlier_share
    return [1 - share, *[share / earlier] * earlier] if earlier else [1.0]
