"""Our own recipe: three sites of 8-bit slices, one after the other, by every strategy against forgetting.

The sets are public slices in three looks: Coronacases (equalised), Radiopaedia (equalised after another window) and
MedSeg (never equalised, cropped to the lungs, other readers, one slice per patient, no lung masks).
"""

from __future__ import annotations

from dataclasses import replace

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
from pneumoscope.recipes.strategy import plain_strategy

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
    return replace(
        full,
        recipe="transfer-slices-short",
        stages=replace(full.stages, chain=chain),
    )
