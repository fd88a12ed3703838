"""What a stage of a transfer study can be made by: its system, and its strategy against forgetting.

A stage names its system (`Stage.system`): ``slices``, ``slices-2.5d``, ``threshold``, a recipe on volumes such as
``mueller-2021``, ``external:MODEL`` or ``predictions:DIR`` for what is trained elsewhere, or ``MODULE:CLASS``, a
learner of the user's own. Of a recipe on volumes the preparation, network,
augmentation, phases and training are taken; data, folds and scoring are the transfer study's. They stand in the
experiment as a `VolumeSystem`, so that `study show` lists every number,
`--set systems.mueller-2021.phases.fit.max_epochs=5` changes it, and a resumed study is compared with it.

A strategy is one part or several joined by ``+``, e.g. ``rehearsal+averaging``. What each part does, and whose idea it
is, stands in `pneumoscope.training.strategies`; here are only names and numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from pneumoscope.errors import InputError
from pneumoscope.recipes.papers.bressem_2021 import bressem, bressem_reduced, bressem_small
from pneumoscope.recipes.papers.mueller_2021 import mueller, mueller_reduced, mueller_small
from pneumoscope.recipes.settings import OUR_CHOICE, Recipe, Settings, our_choice, setting, sourced
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


STRATEGIES: Mapping[str, str] = {
    "plain": "fine-tuning on the new set alone (the paper)",
    "joint": "trains on all slices of all sets seen so far: the upper bound",
    "rehearsal": "mixes a bounded store of slices of earlier sets into every batch",
    "ewc": "holds weights that mattered before: elastic weight consolidation (Kirkpatrick 2017)",
    "lwf": "holds what the network said before on the new images: learning without forgetting (Li and Hoiem 2016)",
    "averaging": "mixes the weights before and after, by as much as validation of the sets to be served wants "
    "(Wortsman 2022)",
    "frozen": "trains the decoder only",
    "site_norm": "trains the normalisation only, one set of it per site (Karani 2018); a selector picks at test",
    "adabn": "re-estimates the normalisation statistics per site (Li 2016); a selector picks at test",
    "selector": "keeps the network of every site and picks one by how the scan looks",
}
"""Every part a strategy can be made of."""

CLASHES = (
    frozenset({"joint", "rehearsal"}),
    frozenset({"frozen", "site_norm"}),
    frozenset({"averaging", "site_norm"}),
    frozenset({"adabn", "site_norm"}),
    frozenset({"adabn", "selector"}),
)
"""Parts that ask for opposite things."""


def strategy_parts(name: str) -> frozenset[str]:
    """The parts of a strategy's name.

    Raises:
        InputError: an unknown part, ``plain`` with others, or two that ask for opposite things.
    """
    parts = frozenset(part.strip() for part in name.split("+"))
    unknown = sorted(parts - set(STRATEGIES))
    if unknown:
        raise InputError(f"unknown strategy {unknown[0]!r} in {name!r}; known are {', '.join(STRATEGIES)}, joined by +")
    clash = next((sorted(pair) for pair in CLASHES if pair <= parts), None)
    if clash or ("plain" in parts and len(parts) > 1):
        raise InputError(f"strategy {name!r}: {' and '.join(clash or ['plain', 'anything else'])} do not go together")
    return parts


@dataclass(frozen=True, kw_only=True)
class Strategy(Settings):
    """The strategy of all retrainings that name none themselves, and the numbers of every strategy."""

    name: str = setting()  # parts of `STRATEGIES` joined by ``+``
    # slices kept of each earlier set by ``rehearsal``; chosen by `training.strategies`
    store_slices: int = setting("slices per set", low=1)
    # of each epoch's slices, from earlier sets together (``rehearsal``, ``joint``); None: every set seen has the same
    # share
    earlier_share: float | None = setting("share of slices", low=0.0, high=0.95)
    # of each earlier set, kept for choosing epochs and mixing weights
    validation_slices: int = setting("slices per set", low=1)
    ewc_weight: float = setting("", low=0.0)  # of the penalty, the Fisher information being scaled to a sum of 1
    # training slices of each earlier set from which the Fisher information is estimated
    ewc_slices: int = setting("slices per set", low=1)
    lwf_weight: float = setting("", low=0.0)  # of the distillation beside the task's own loss
    lwf_temperature: float = setting("", low=0.1, high=20.0)  # softens both answers
    # shares of the new weights that are tried; 1 is plain fine-tuning
    averaging_weights: tuple[float, ...] = setting("share", low=0.0, high=1.0)
    frozen: tuple[str, ...] = setting()  # modules that keep their weights and statistics
    # training slices of each set from which its statistics are estimated
    adabn_slices: int = setting("slices per set", low=2)
    # at test, take the site's own network where it has one, instead of asking the selector
    site_known: bool = setting()

    def __post_init__(self) -> None:
        super().__post_init__()
        strategy_parts(self.name)

    @property
    def parts(self) -> frozenset[str]:
        """The parts of the name."""
        return strategy_parts(self.name)


def plain_strategy() -> Strategy:
    """Plain fine-tuning, as in the papers, and our numbers for every other strategy."""
    return Strategy(
        name=sourced("plain", "Maganaris 2022a and 2022b, section 3: retraining on the new set alone"),
        store_slices=our_choice(40, "a tenth of the 440 training slices of the papers, rounded"),
        earlier_share=our_choice(None, "no set is worth more than another"),
        validation_slices=our_choice(24, "enough to rank, few to keep"),
        ewc_weight=our_choice(1e8, "chosen on validation patients; Kirkpatrick 2017 searches it per problem"),
        ewc_slices=our_choice(60, "the estimate is a mean over slices; more cost time and change little"),
        lwf_weight=sourced(1.0, "Li and Hoiem 2016, section 3: lambda_o = 1; " + OUR_CHOICE + "kept"),
        lwf_temperature=sourced(2.0, "Li and Hoiem 2016, section 3: T = 2; " + OUR_CHOICE + "kept"),
        averaging_weights=sourced(
            (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
            "Wortsman 2022, section 3 mixes linearly; " + OUR_CHOICE + "tenths",
        ),
        frozen=our_choice(("down",), "the encoder, by the names of models.unet"),
        adabn_slices=our_choice(60, "means of many thousand pixels each are stable"),
        site_known=our_choice(False, "a new scan does not say which hospital it resembles"),
    )
