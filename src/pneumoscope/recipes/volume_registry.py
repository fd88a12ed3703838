"""The recipes on volumes by name; beside `recipes.registry`, whose recipes are of another kind."""

from __future__ import annotations

from collections.abc import Mapping

from pneumoscope.errors import InputError
from pneumoscope.recipes.papers.bressem_2021 import bressem, bressem_reduced, bressem_small
from pneumoscope.recipes.papers.mueller_2021 import mueller, mueller_reduced, mueller_small
from pneumoscope.recipes.settings import Recipe
from pneumoscope.recipes.volumes import VolumeExperiment

VOLUME_RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "mueller-2021",
            "Mueller et al. 2021: 3D U-Net on random boxes of 20 scans, 2- to 5-fold, ablation (tables 1 and 2)",
            mueller,
        ),
        Recipe(
            "mueller-2021-reduced",
            "mueller-2021 at reduced size on synthetic scans: minutes, and above the threshold",
            mueller_reduced,
        ),
        Recipe("mueller-2021-small", "the same road on tiny synthetic scans: minutes", mueller_small),
        Recipe(
            "bressem-2021",
            "Bressem et al. 2021: R3D-18 U-Net on whole scans in two sizes, RICORD to two other sets (tables 1 to 3)",
            bressem,
        ),
        Recipe(
            "bressem-2021-reduced",
            "bressem-2021 at reduced size on synthetic scans: minutes, and above the threshold",
            bressem_reduced,
        ),
        Recipe("bressem-2021-small", "the same road on tiny synthetic scans: minutes", bressem_small),
    )
}
"""Every recipe on volumes."""


def build_volume_recipe(name: str) -> VolumeExperiment:
    """The experiment of that name.

    Raises:
        InputError: no such recipe; the known ones are named.
    """
    if name not in VOLUME_RECIPES:
        raise InputError(f"there is no recipe {name!r} on volumes; known are {', '.join(VOLUME_RECIPES)}")
    found: VolumeExperiment = VOLUME_RECIPES[name].build()
    return found
