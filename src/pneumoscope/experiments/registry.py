"""The recipes by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from pneumoscope.errors import InputError
from pneumoscope.experiments.katsamenis import chest_xray
from pneumoscope.experiments.maganaris import four_channel, four_channel_demo
from pneumoscope.experiments.maganaris_2022a import two_channel
from pneumoscope.experiments.schema import Experiment
from pneumoscope.experiments.transfer import transfer_slices, transfer_slices_short
from pneumoscope.experiments.transfer_systems import transfer_systems, transfer_systems_small
from pneumoscope.experiments.volume_recipes import VOLUME_RECIPES, VolumeRecipe
from pneumoscope.experiments.volumes import VolumeExperiment
from pneumoscope.experiments.xray_schema import XrayExperiment


@dataclass(frozen=True)
class Recipe:
    """An entry of `pneumoscope study list`.

    Attributes:
        name: what the user types.
        summary: one line.
        build: makes the experiment.
    """

    name: str
    summary: str
    build: Callable[[], Experiment]


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
            "the same road on tiny synthetic scans, with the small recipes: minutes",
            transfer_systems_small,
        ),
    )
}
"""Every recipe on CT that can be run today."""


@dataclass(frozen=True)
class XrayRecipe:
    """As `Recipe`, for radiographs."""

    name: str
    summary: str
    build: Callable[[], XrayExperiment]


XRAY_RECIPES: Mapping[str, XrayRecipe] = {
    "katsamenis-2020": XrayRecipe(
        "katsamenis-2020",
        "Katsamenis et al. 2020: COVID-19 in chest X-rays by transfer learning, and what is left without shortcuts",
        chest_xray,
    )
}

ALL_RECIPES: Mapping[str, Recipe | VolumeRecipe | XrayRecipe] = {**RECIPES, **VOLUME_RECIPES, **XRAY_RECIPES}
"""What `pneumoscope study list` lists."""


def build_any(name: str) -> Experiment | VolumeExperiment | XrayExperiment:
    """The experiment of that name: transfer between sets of CT, on volumes, or on radiographs.

    Raises:
        InputError: no such recipe; the known ones are named, the nearest first.
    """
    if name not in ALL_RECIPES:
        near = get_close_matches(name, ALL_RECIPES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"there is no recipe {name!r}; {hint}known are {', '.join(ALL_RECIPES)}")
    return ALL_RECIPES[name].build()


def build_recipe(name: str) -> Experiment:
    """The experiment on CT of that name.

    Raises:
        InputError: no such recipe, or one on volumes or radiographs.
    """
    found = build_any(name)
    if not isinstance(found, Experiment):
        kind = "on volumes" if isinstance(found, VolumeExperiment) else "of radiographs"
        raise InputError(f"{name} is a study {kind}; this runs transfer studies of CT: {', '.join(RECIPES)}")
    return found
