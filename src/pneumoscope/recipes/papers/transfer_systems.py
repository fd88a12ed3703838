"""Our own recipe: the same road through three sites by 2D, 2.5D and 3D networks and by a plain threshold.

The sites are those of Maganaris 2022b, in Hounsfield units; patients are whole, and every system is trained, validated
and tested on the same ones.
"""

from __future__ import annotations

from dataclasses import replace

from pneumoscope.recipes.papers.maganaris_2022b import four_channel
from pneumoscope.recipes.schema import Experiment, Stage
from pneumoscope.recipes.settings import OUR_CHOICE, all_from, our_choice, revise
from pneumoscope.recipes.systems import NEIGHBOURS, SLICES, THRESHOLD

CITATION = "our own; after Maganaris et al. 2022 (arXiv 2208.08343), Mueller et al. 2021 and Bressem et al. 2021"
NOTES = (
    "Every system keeps the budget of its own recipe, so times say what these settings cost, not what is needed.",
    "Networks on volumes and the threshold see the whole scan and no lung mask; networks on slices see slices with "
    "lung and the mask. All are scored on the same slices with lung, at the same size.",
    "mueller-2021 has four classes. Its own study lets the largest win; here the probability of infection is cut at "
    "scoring.threshold, as for every other system.",
    "Sets without lung masks (MosMed) have them supplied by the study's lung network, for the slices and for the lung "
    "classes of mueller-2021 alike.",
    "The threshold has no weights: each of its stages is fitted again on the training scans of its set.",
    "The encoder of bressem-2021 begins with fresh weights unless systems.bressem-2021.network.encoder_weights names "
    "the published ones; retrainings begin from the stage before and train the same phases again.",
    "transfer-systems is for a graphics card: 1000 epochs of 150 steps for each stage of mueller-2021.",
)
SHORT_NAMES = (
    (SLICES, "2d"),
    (NEIGHBOURS, "2.5d"),
    ("mueller-2021", "mueller"),
    ("bressem-2021", "bressem"),
    (THRESHOLD, "threshold"),
)
"""The systems of the recipe in the order they run, and how their stages are called."""

_ROAD = (("Tr1", 1, None), ("Tr1_R_2", 2, "Tr1"), ("Tr1_R_2_R_3", 3, "Tr1_R_2"))
_SMALL = OUR_CHOICE + "minutes on one processor core without bf16"


def _chain(small: bool) -> tuple[Stage, ...]:
    return tuple(
        all_from(
            OUR_CHOICE + "the same road for every system",
            Stage,
            name=f"{name}-{short}",
            site=site,
            start=start and f"{start}-{short}",
            system=our_choice(
                f"{system}-small" if small and system.endswith("2021") else system,
                "2D, 2.5D, 3D and no network in one harness",
            ),
        )
        for system, short in SHORT_NAMES
        for name, site, start in _ROAD
    )


def transfer_systems() -> Experiment:
    """Three sites one after the other by five systems, on equal splits by patient."""
    base = four_channel()
    by_patient = OUR_CHOICE + "systems that see whole scans need whole patients"
    split = revise(base.split, by_patient, by="patient", train_slices=6, validation_slices=2, patient_test_share=1 / 3)
    sites = tuple(replace(site, published=None) for site in base.data.sites)
    return replace(
        base,
        recipe="transfer-systems",
        title="2D, 2.5D, 3D and a threshold on Hounsfield units through three sites, on equal splits",
        citation=CITATION,
        notes=NOTES,
        data=replace(base.data, sites=sites),
        split=split,
        training=revise(
            base.training,
            OUR_CHOICE + "learns small lesions, and Dice is what is reported",
            batch_size=16,
            loss="dice_cross_entropy",
            monitor="val_dice",
            schedule="cosine",
        ),
        stages=replace(
            base.stages,
            first=revise(base.stages.first, OUR_CHOICE + "Adam's usual rate", learning_rate=1e-3, max_epochs=60),
            retrain=revise(base.stages.retrain, OUR_CHOICE + "Adam's usual rate", learning_rate=1e-3, max_epochs=30),
            chain=_chain(small=False),
        ),
        paper=(),
    )


def transfer_systems_small() -> Experiment:
    """The same on tiny synthetic scans: minutes, and scores that say nothing about real ones."""
    full = transfer_systems()
    sites = tuple(revise(site, _SMALL, phantom_patients=9) for site in full.data.sites)
    return replace(
        full,
        recipe="transfer-systems-small",
        title="transfer-systems on tiny synthetic scans, with the small recipes",
        data=replace(revise(full.data, _SMALL, phantom_size="tiny"), sites=sites),
        preprocessing=revise(full.preprocessing, _SMALL, size=48),
        network=revise(full.network, _SMALL, features=(8, 16, 32), out_channels=1),
        training=revise(full.training, _SMALL, batch_size=4, precision="fp32", loss="pooled_dice_cross_entropy"),
        stages=replace(
            full.stages,
            first=revise(full.stages.first, _SMALL, max_epochs=24, patience=24, learning_rate=4e-3),
            retrain=revise(full.stages.retrain, _SMALL, max_epochs=10, patience=10, learning_rate=3e-3),
            chain=_chain(small=True),
        ),
        lung=replace(
            revise(full.lung, _SMALL, features=(8, 16, 32), max_slices=120),
            budget=revise(full.lung.budget, _SMALL, max_epochs=6, patience=3, learning_rate=3e-3),
        ),
    )
