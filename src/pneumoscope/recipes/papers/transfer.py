"""Our own recipes: three sites one after the other, by every strategy against forgetting, or by several systems.

`transfer-systems` takes the sites of Maganaris 2022b, in Hounsfield units, through 2D, 2.5D and 3D networks and a plain
threshold: patients are whole, and every system is trained, validated and tested on the same ones. The sets of
`transfer-slices` are public slices in three looks: Coronacases (equalised), Radiopaedia (equalised after another
window) and MedSeg (never equalised, cropped to the lungs, other readers, one slice per patient, no lung masks).
"""

from __future__ import annotations

from dataclasses import replace

from pneumoscope.recipes.papers.maganaris_2022b import four_channel
from pneumoscope.recipes.schema import (
    GREY_WINDOW,
    Budget,
    Data,
    Experiment,
    LungModel,
    Network,
    Preprocessing,
    Scoring,
    Site,
    Split,
    Stage,
    Stages,
    Training,
)
from pneumoscope.recipes.settings import OUR_CHOICE, all_from, our_choice, revise, sourced
from pneumoscope.recipes.stages import NEIGHBOURS, SLICES, THRESHOLD, plain_strategy

CITATION = "our own; after the question of Maganaris et al. 2022 (arXiv 2208.08343)"

COMPARED = (
    "plain",
    "joint",
    "rehearsal",
    "averaging",
    "lwf",
    "ewc",
    "selector",
    "selector+averaging",
    "rehearsal+averaging",
    "frozen",
    "site_norm",
    "adabn",
)
"""The strategies of the recipe, in the order they are trained."""

SHORT = ("plain", "joint", "rehearsal", "selector", "rehearsal+averaging", "adabn")
"""Those of the short recipe: the question, its two ends and what costs little beside them."""

NOTES = (
    "Pictures are 8 bit and were made differently at each site; they are no Hounsfield units, and no model trained on "
    "them reads scans.",
    "Every stage after the first takes the same number of optimiser steps, whatever the strategy and the set.",
    "Radiopaedia 29_86490_1 holds 29 infected pixels: it trains and is never tested on. 10_85902_1 and 10_85902_3 are "
    "one patient.",
    "MedSeg has no lung masks; a lung network trained on the training patients of the other two sets supplies them.",
    "With 7 and 4 patients on two sites, who is tested decides much: repeat with --seed, which draws other patients.",
)

SMALL = OUR_CHOICE + "chosen so that all strategies train within an hour on one processor core that computes in bf16"


def _site(number: int, label: str, phantom_site: str, patients: int) -> Site:
    return Site(
        number=number,
        dataset=our_choice("slices", "folders of 8-bit slices"),
        label=our_choice(label, "the source's folder"),
        cases=our_choice("*", "all scans"),
        phantom_site=our_choice(phantom_site, "a synthetic site with another scanner and reader"),
        phantom_patients=our_choice(patients, "as few as the real sets have"),
    )


def _split() -> Split:
    ratio = OUR_CHOICE + "three patients train for each that validates"
    return Split(
        by=our_choice("patient", "patients are kept whole"),
        train_slices=sourced(6, ratio),
        validation_slices=sourced(2, ratio),
        shortage=our_choice("error", "not used when patients are kept whole"),
        patient_test_share=our_choice(1 / 3, "every site has patients to test on, and some left to train on"),
        seed=our_choice(0, "any seed; other seeds test other patients"),
        judged_pixels=our_choice(50, "a score on 29 pixels is chance"),
    )


def _training() -> Training:
    return all_from(
        SMALL,
        Training,
        optimiser="adam",
        weight_decay=0.0,
        schedule="cosine",
        batch_size=8,
        loss=our_choice("dice_cross_entropy", "learns small lesions in few steps"),
        monitor=our_choice("val_dice", "Dice is what is reported"),
        precision="auto",
        seed=our_choice(0, "any seed; fixed so that the study can be repeated"),
        augment=our_choice("strong", "other looks and sizes of the chest, as another site has them"),
        hide_lung=our_choice(0.5, "a network that cannot do without the lung mask fails where it is poor"),
        ema=our_choice(0.98, "steadier than the last step of a short training"),
        keep=our_choice(
            "last",
            "the best epoch on one or two validation patients was often the third of ten, which made "
            "equal budgets unequal; with a falling rate and averaged weights the last needs no such choice",
        ),
    )


def _stages() -> Stages:
    budget = all_from(
        SMALL,
        Budget,
        max_epochs=24,
        patience=our_choice(24, "never stops early: equal budgets"),
        learning_rate=2e-3,
        epoch_slices=our_choice(400, "equal budgets, whatever the set's size"),
    )

    def stage(name: str, site: int, start: str | None, strategy: str | None) -> Stage:
        return Stage(
            name=name,
            site=our_choice(site, "the order of the sets"),
            start=our_choice(start, "each set after the other"),
            strategy=our_choice(strategy, "all compared"),
        )

    chain = [stage("Tr1", 1, None, None)]
    for strategy in COMPARED:
        second = f"Tr1_R_2-{strategy}"
        chain.append(stage(second, 2, "Tr1", strategy))
        chain.append(stage(f"Tr1_R_2_R_3-{strategy}", 3, second, strategy))
    retrain = revise(budget, SMALL, max_epochs=12, patience=12, learning_rate=1e-3)
    return Stages(first=budget, retrain=retrain, chain=tuple(chain))


def _lung() -> LungModel:
    return all_from(
        OUR_CHOICE + "not used for 8-bit pictures, which have no air of known value",
        LungModel,
        sites=our_choice((1, 2), "the two sets with lung masks"),
        features=sourced((8, 16, 32, 64), SMALL),
        max_slices=sourced(600, SMALL),
        aerated_hu=-320.0,
        aerated_probability=0.3,
        dense_probability=0.75,
        closing_mm=4.0,
        smallest_ml=20.0,
        budget=all_from(
            SMALL,
            Budget,
            max_epochs=4,
            patience=4,
            learning_rate=3e-3,
            epoch_slices=our_choice(400, "an epoch shows every training slice once"),
        ),
    )


def transfer_slices() -> Experiment:
    """Coronacases, then Radiopaedia, then MedSeg, by every strategy of `COMPARED`; patients are kept whole."""
    return Experiment(
        recipe="transfer-slices",
        title="Three sites of 8-bit CT slices one after the other: which strategy forgets least",
        citation=CITATION,
        notes=NOTES,
        data=Data(
            sites=(_site(1, "coronacases", "B", 7), _site(2, "radiopaedia", "A", 4), _site(3, "medseg", "C", 8)),
            phantom_size=sourced("small", SMALL),
            phantom_seed=our_choice(0, "any seed; fixed so that the study can be repeated"),
        ),
        preprocessing=Preprocessing(
            size=sourced(128, SMALL),
            windows_hu=our_choice((GREY_WINDOW,), "8-bit grey values, 0 to 255, as one channel"),
            lung_channel=our_choice(True, "the second channel, as in Maganaris 2022a, section 3.1"),
            store=our_choice("uint8", "the pictures are 8 bit"),
            intensity=our_choice("grey8", "the pictures are no Hounsfield units"),
        ),
        network=all_from(
            SMALL,
            Network,
            features=our_choice((16, 32, 64, 128, 128), "halved four times, a unit at the bottom sees the whole chest"),
            out_channels=1,
            norm="batch",
            dropout=0.0,
        ),
        split=_split(),
        training=_training(),
        stages=_stages(),
        lung=_lung(),
        scoring=all_from(
            SMALL,
            Scoring,
            threshold=0.5,
            slices=our_choice("infected", "as the papers do"),
            interval_level=0.95,
            interval_resamples=2000,
            interval_seed=0,
        ),
        paper=(),
        strategy=revise(
            plain_strategy(),
            OUR_CHOICE + "tried on the validation patients of seed 0, second stage: EWC 1e3, 1e5 and 1e8, LwF 3",
            ewc_weight=1e8,
            lwf_weight=3.0,
        ),
    )


def transfer_slices_short() -> Experiment:
    """The same study with a few strategies, less than half the time: for more seeds, that is other test patients."""
    full = transfer_slices()
    chain = tuple(stage for stage in full.stages.chain if stage.strategy is None or stage.strategy in SHORT)
    return replace(full, recipe="transfer-slices-short", stages=replace(full.stages, chain=chain))


SYSTEMS_CITATION = (
    "our own; after Maganaris et al. 2022 (arXiv 2208.08343), Mueller et al. 2021 and Bressem et al. 2021"
)
SYSTEMS_NOTES = (
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
        citation=SYSTEMS_CITATION,
        notes=SYSTEMS_NOTES,
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
