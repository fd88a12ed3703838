"""The remedies against shortcuts, one name each: what is shown, how sources are mixed, who else is learnt from.

``as paper`` is the paper's own input. A remedy must keep what it promises on new sources; that the accuracy on the same
sources stays high says nothing, and that it falls is often the first honest sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.xray.pictures import PictureRecipe
from pneumoscope.recipes.xray import XrayExperiment

AS_PAPER = "as paper"


@dataclass(frozen=True)
class Mitigation:
    """One way of showing and mixing pictures.

    Attributes:
        name: ``as paper`` or a name of `recipes.xray.ARMS`.
        about: in words.
        recipe: what is shown.
        balanced: every source of a class is drawn equally often, and every class.
        adults: healthy adults from before the pandemic are learnt as normal.
    """

    name: str
    about: str
    recipe: PictureRecipe
    balanced: bool = False
    adults: bool = False


def plain_recipe(experiment: XrayExperiment) -> PictureRecipe:
    """The input of the paper's networks."""
    fit = cast(Literal["stretch", "pad"], experiment.pictures.fit)
    top, bottom, left, right = experiment.honest.lung_box
    return PictureRecipe(
        side=experiment.pictures.side,
        fit=fit,
        clip_limit=experiment.honest.clahe_limit,
        tiles=experiment.honest.clahe_tiles,
        lung_box=(top, bottom, left, right),
        corner=experiment.honest.corner_share,
    )


def views(experiment: XrayExperiment) -> dict[str, PictureRecipe]:
    """What the source probe is shown: with the chest, and without."""
    plain = plain_recipe(experiment)
    return {
        "whole picture": plain,
        "lungs cut out": replace(plain, view="no_lungs"),
        "four corners": replace(plain, view="corners"),
        "border cut off": replace(plain, border=experiment.honest.border),
        "equalised": replace(plain, equalise="clahe"),
        "lung box only": replace(plain, view="lung_box"),
        "lung box, equalised": replace(plain, view="lung_box", equalise="clahe"),
    }


def all_mitigations(experiment: XrayExperiment) -> dict[str, Mitigation]:
    """The paper's way and every remedy, by name."""
    plain, honest = plain_recipe(experiment), experiment.honest
    boxed = replace(plain, view="lung_box", equalise="clahe")
    arms = (
        Mitigation(AS_PAPER, "the whole picture, as the paper", plain),
        Mitigation(
            "border", f"the outer {honest.border:.0%} of each edge cut off", replace(plain, border=honest.border)
        ),
        Mitigation("equalised", "local histogram equalisation (CLAHE)", replace(plain, equalise="clahe")),
        Mitigation("lung_box", "only the fixed box where the lungs lie", replace(plain, view="lung_box")),
        Mitigation("balanced", "every source of a class equally often", plain, balanced=True),
        Mitigation("adults", "healthy adults of a third hospital learnt as normal", plain, adults=True),
        Mitigation("all", "lung box, equalised, balanced, with healthy adults", boxed, balanced=True, adults=True),
    )
    return {arm.name: arm for arm in arms}


def balance(labels: NDArray[np.int64], sources: Sequence[str], seed: int) -> NDArray[np.int64]:
    """Places (some several times, some never) so that classes, and sources within a class, are equally frequent.

    The largest class keeps its size. Each picture of a source is taken equally often, give or take one.
    """
    rng = np.random.default_rng([seed, 13])
    named = np.asarray(sources, dtype=np.str_)
    target = int(np.bincount(labels).max())
    taken: list[NDArray[np.int64]] = []
    for label in np.unique(labels):
        cells = [np.flatnonzero((labels == label) & (named == s)) for s in np.unique(named[labels == label])]
        for cell in cells:
            wanted = max(1, target // len(cells))
            whole, rest = divmod(wanted, len(cell))
            taken += [np.tile(cell, whole), np.sort(rng.permutation(cell)[:rest])]
    return np.concatenate(taken)
