"""The recipes by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pneumoscope.errors import InputError, no_such
from pneumoscope.recipes.papers.katsamenis_2020 import chest_xray
from pneumoscope.recipes.papers.maganaris_2022a import two_channel
from pneumoscope.recipes.papers.maganaris_2022b import four_channel, four_channel_demo
from pneumoscope.recipes.papers.transfer import (
    transfer_slices,
    transfer_slices_short,
    transfer_systems,
    transfer_systems_small,
)
from pneumoscope.recipes.settings import Recipe, all_values, configured
from pneumoscope.recipes.stages import VOLUME_RECIPES

RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "maganaris-2022a",
            "Maganaris et al. 2022: one HU window and the lung mask, two sets, one retraining (table 2)",
            two_channel,
        ),
        Recipe(
            "maganaris-2022b",
            "Maganaris et al. 2022: three HU windows and the lung mask, three sets, successive retraining (table 2)",
            four_channel,
        ),
        Recipe(
            "maganaris-2022b-demo",
            "the same chain on small synthetic sites: minutes on two processor cores",
            four_channel_demo,
        ),
        Recipe(
            "transfer-slices",
            "three sites of 8-bit slices one after the other, by every strategy against forgetting; ours",
            transfer_slices,
        ),
        Recipe(
            "transfer-slices-short",
            "the same with six strategies, less than half the time: for more seeds",
            transfer_slices_short,
        ),
        Recipe(
            "transfer-systems",
            "three sites one after the other by 2D, 2.5D and 3D networks and a threshold, on equal splits; ours",
            transfer_systems,
        ),
        Recipe(
            "transfer-systems-small",
            "the same on tiny synthetic scans, with the small recipes: minutes",
            transfer_systems_small,
        ),
    )
}
"""Every recipe on CT that can be run today."""


XRAY_RECIPES: Mapping[str, Recipe] = {
    "katsamenis-2020": Recipe(
        "katsamenis-2020",
        "Katsamenis et al. 2020: COVID-19 in chest X-rays by transfer learning, and what is left without shortcuts",
        chest_xray,
    )
}

ALL_RECIPES: Mapping[str, Recipe] = {**RECIPES, **VOLUME_RECIPES, **XRAY_RECIPES}  # What `pneumoscope study list` lists


def build_any(
    recipe: Any,
    settings: Iterable[str] = (),
    *,
    seed: int | None = None,
    seeds: int | None = None,
    precision: str = "auto",
) -> Any:
    """The experiment of that name, of whatever kind, with its settings.

    Args:
        settings: changes as ``key=value``.
        seed: of everything drawn at random; None leaves those of the recipe.
        seeds: trainings of a study of radiographs, each with its own draw and split.
        precision: of trainings; ``auto`` leaves that of the recipe.

    Raises:
        InputError: no such recipe (the known ones are named, the nearest first), or as `settings.configured`.
    """
    if isinstance(recipe, str):
        if recipe not in ALL_RECIPES:
            raise InputError(no_such("recipe", recipe, ALL_RECIPES))
        recipe = ALL_RECIPES[recipe].build()
    if seeds is not None:
        if "training.repeats" not in {value.key for value in all_values(recipe)}:
            raise InputError("seeds is for studies of radiographs; repeat this one with another seed")
        settings = [f"training.repeats={seeds}", *settings]
    return configured(recipe, settings, seed=seed, precision=precision)
