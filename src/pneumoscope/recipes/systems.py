"""The systems that a stage of a transfer study can be made by: slices, slices with neighbours, volumes, a threshold.

A stage names its system (`Stage.system`): ``slices``, ``slices-2.5d``, ``threshold``, a recipe on volumes such as
``mueller-2021``, ``external:MODEL`` or ``predictions:DIR`` for what is trained elsewhere, or ``MODULE:CLASS``, a
learner of the user's own. Of a recipe on volumes the preparation, network,
augmentation, phases and training are taken; data, folds and scoring are the transfer study's. They stand in the
experiment as a `VolumeSystem`, so that `study show` lists every number,
`--set systems.mueller-2021.phases.fit.max_epochs=5` changes it, and a resumed study is compared with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from pneumoscope.errors import InputError
from pneumoscope.recipes.papers.bressem_2021 import bressem, bressem_reduced, bressem_small
from pneumoscope.recipes.papers.mueller_2021 import mueller, mueller_reduced, mueller_small
from pneumoscope.recipes.settings import Recipe, Settings, setting, sourced
from pneumoscope.recipes.volumes import (
    Phase,
    VolumeExperiment,
    VolumeNetwork,
    VolumePreparation,
    VolumeTraining,
    VolumeVariation,
)

if TYPE_CHECKING:
    from pneumoscope.recipes.schema import Experiment, Stage

SLICES, NEIGHBOURS, THRESHOLD = "slices", "slices-2.5d", "threshold"

OWN_SYSTEMS: Mapping[str, str] = {
    SLICES: "2D: the experiment's U-Net on single slices",
    NEIGHBOURS: "2.5D: the same U-Net, shown the neighbouring slices of the scan as further channels",
    THRESHOLD: "no network: two Hounsfield values fitted on the training scans",
}
"""The systems that are no recipe on volumes."""

ON_SLICES = (SLICES, NEIGHBOURS)  # Systems that see what the study reads; all others load scans in Hounsfield units


def is_own_learner(system: str) -> bool:
    """Whether a system is ``MODULE:CLASS``: a learner of the user's own, imported when its stage is made."""
    return ":" in system


EXTERNAL, PREDICTIONS = "external", "predictions"
"""Stages that are trained elsewhere: ``external:MODEL`` and ``predictions:DIR``."""


def split_external(system: str) -> tuple[str, str]:
    """Kind and path of a system that is trained elsewhere; two empty texts for any other."""
    kind, _, path = system.partition(":")
    return (kind, path) if kind in (EXTERNAL, PREDICTIONS) and path else ("", "")


SIMPLE = frozenset({"plain", "joint"})  # Strategies that every system can be retrained by


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
        Recipe("mueller-2021-small", "the same pipeline on tiny synthetic scans: minutes", mueller_small),
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
        Recipe("bressem-2021-small", "the same pipeline on tiny synthetic scans: minutes", bressem_small),
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


@dataclass(frozen=True, kw_only=True)
class VolumeSystem(Settings):
    """What a transfer study takes of a recipe on volumes.

    Raises:
        InputError: no such recipe, or values that do not go together.
    """

    name: str  # of the recipe
    # preparation, network, augment, phases, training: see `recipes.volumes`
    preparation: VolumePreparation
    network: VolumeNetwork
    augment: VolumeVariation
    phases: tuple[Phase, ...]
    training: VolumeTraining
    # share of a window that the next one covers again when a scan is predicted, (i, j, k)
    overlap: tuple[float, float, float] = setting("share", low=0, high=0.95)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preparation.classes == "lungs":
            raise InputError(f"system {self.name} must find infection; preparation.classes=lungs has no such class")
        self.experiment()

    def experiment(self) -> VolumeExperiment:
        """The recipe with these values in place of its own."""
        recipe = _recipe(self.name)
        return replace(
            recipe,
            preparation=self.preparation,
            network=self.network,
            augment=self.augment,
            phases=self.phases,
            training=self.training,
            scoring=replace(recipe.scoring, overlap=sourced(self.overlap, self.sources["overlap"])),
        )


@cache
def _recipe(name: str) -> VolumeExperiment:
    """A recipe, built once: a study is made again for every value that is set."""
    return build_volume_recipe(name)


def volume_system(name: str) -> VolumeSystem:
    """The recipe of that name as a system.

    Raises:
        InputError: no such recipe.
    """
    recipe = build_volume_recipe(name)
    return VolumeSystem(
        name=name,
        preparation=recipe.preparation,
        network=recipe.network,
        augment=recipe.augment,
        phases=recipe.phases,
        training=recipe.training,
        overlap=sourced(recipe.scoring.overlap, recipe.scoring.sources["overlap"]),
    )


def settled_systems(experiment: Experiment) -> tuple[VolumeSystem, ...]:
    """The volume systems that the stages name, in their order: those given, or as their recipes have them.

    Raises:
        InputError: an unknown system, or one that this experiment cannot have, see `_require_possible`.
    """
    given = {system.name: system for system in experiment.systems}
    for stage in experiment.stages.chain:
        _require_possible(experiment, stage)
    chain = (stage.system for stage in experiment.stages.chain)
    named = dict.fromkeys(s for s in chain if s not in OWN_SYSTEMS and not is_own_learner(s))
    return tuple(given.get(name) or volume_system(name) for name in named)


def _require_possible(experiment: Experiment, stage: Stage) -> None:
    system, here = stage.system, f"stage {stage.name}"
    if system not in OWN_SYSTEMS and system not in VOLUME_RECIPES and not is_own_learner(system):
        known = ", ".join((*OWN_SYSTEMS, *VOLUME_RECIPES))
        raise InputError(
            f"{here}: unknown system {system!r}; known are {known}, external:MODEL, predictions:DIR, and MODULE:CLASS "
            "of your own"
        )
    before = experiment.stage(stage.start).system if stage.start else system
    if before != system and not (split_external(system)[0] and split_external(before)[0]):
        raise InputError(
            f"{here} is of system {system} and starts from {stage.start}, which is of {before}: its weights do not "
            "fit; start it from a stage of its own system, or from none"
        )
    if stage.start and not stage.site:
        raise InputError(f"{here} was retrained from {stage.start} on a set that is not known; give its site")
    if system == SLICES:
        return
    if experiment.split.by == "slice":
        raise InputError(
            f"{here}: system {system} sees several slices of a scan at once, and split.by=slice puts slices of one "
            "scan into training and test; use --set split.by=patient"
        )
    if system in ON_SLICES:
        return
    if experiment.preprocessing.intensity == "grey8":
        raise InputError(
            f"{here}: system {system} reads scans in Hounsfield units, and the sets of {experiment.recipe} are 8-bit "
            "slices; use a recipe on scans, such as transfer-systems"
        )
    other = sorted(experiment.strategy_of(stage.name) - SIMPLE)
    if other:
        raise InputError(
            f"{here}: strategy {'+'.join(other)} is for networks on slices; system {system} is retrained by plain or "
            "joint"
        )
