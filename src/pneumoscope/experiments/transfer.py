"""Our own recipe: three sites of 8-bit slices, one after the other, by every strategy against forgetting.

The sets are public slices in three looks: Coronacases (equalised), Radiopaedia (equalised after another window) and
MedSeg (never equalised, cropped to the lungs, other readers, one slice per patient, no lung masks).
"""

from __future__ import annotations

from dataclasses import replace

from pneumoscope.experiments.schema import (
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
from pneumoscope.experiments.sheet import OUR_CHOICE, all_from, our_choice, revise
from pneumoscope.experiments.strategy import plain_strategy

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


def _data() -> Data:
    rows = ((1, "coronacases", "B", 7), (2, "radiopaedia", "A", 4), (3, "medseg", "C", 8))
    sites = tuple(
        Site(
            number=number,
            dataset=our_choice("slices", "folders of 8-bit slices"),
            label=our_choice(label, "the source's folder"),
            cases=our_choice("*", "all scans"),
            phantom_site=our_choice(phantom, "a synthetic site with another scanner and reader"),
            phantom_patients=our_choice(patients, "as few as the real sets have"),
            sources=all_from(SMALL),
        )
        for number, label, phantom, patients in rows
    )
    return Data(
        sites=sites,
        phantom_size="small",
        phantom_seed=our_choice(0, "any seed; fixed so that the study can be repeated"),
        sources=all_from(SMALL),
    )


def _preprocessing() -> Preprocessing:
    return Preprocessing(
        size=128,
        windows_hu=our_choice((GREY_WINDOW,), "8-bit grey values, 0 to 255, as one channel"),
        lung_channel=our_choice(True, "the second channel, as in Maganaris 2022a, section 3.1"),
        store=our_choice("uint8", "the pictures are 8 bit"),
        intensity=our_choice("grey8", "the pictures are no Hounsfield units"),
        sources=all_from(SMALL),
    )


def _training() -> Training:
    return Training(
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
        sources=all_from(SMALL),
    )


def _stages() -> Stages:
    budget = Budget(
        max_epochs=24,
        patience=our_choice(24, "never stops early: equal budgets"),
        learning_rate=2e-3,
        epoch_slices=our_choice(400, "equal budgets, whatever the set's size"),
        sources=all_from(SMALL),
    )
    sources = {
        "site": OUR_CHOICE + "the order of the sets",
        "start": OUR_CHOICE + "each set after the other",
        "strategy": OUR_CHOICE + "all compared",
    }
    chain = [Stage(name="Tr1", site=1, start=None, sources=sources)]
    for strategy in COMPARED:
        second = f"Tr1_R_2-{strategy}"
        chain.append(Stage(name=second, site=2, start="Tr1", strategy=strategy, sources=sources))
        chain.append(Stage(name=f"Tr1_R_2_R_3-{strategy}", site=3, start=second, strategy=strategy, sources=sources))
    retrain = revise(budget, SMALL, max_epochs=12, patience=12, learning_rate=1e-3)
    return Stages(first=budget, retrain=retrain, chain=tuple(chain))


def _lung() -> LungModel:
    in_pictures = "not used for 8-bit pictures, which have no air of known value"
    budget = Budget(max_epochs=4, patience=4, learning_rate=3e-3, epoch_slices=400, sources=all_from(SMALL))
    return LungModel(
        sites=our_choice((1, 2), "the two sets with lung masks"),
        features=(8, 16, 32, 64),
        max_slices=600,
        aerated_hu=our_choice(-320.0, in_pictures),
        aerated_probability=our_choice(0.3, in_pictures),
        dense_probability=our_choice(0.75, in_pictures),
        closing_mm=our_choice(4.0, in_pictures),
        smallest_ml=our_choice(20.0, in_pictures),
        budget=budget,
        sources=all_from(SMALL),
    )


def transfer_slices() -> Experiment:
    """Coronacases, then Radiopaedia, then MedSeg, by every strategy of `COMPARED`; patients are kept whole."""
    return Experiment(
        recipe="transfer-slices",
        title="Three sites of 8-bit CT slices one after the other: which strategy forgets least",
        citation=CITATION,
        notes=NOTES,
        data=_data(),
        preprocessing=_preprocessing(),
        network=Network(
            features=our_choice((16, 32, 64, 128, 128), "halved four times, a unit at the bottom sees the whole chest"),
            out_channels=1,
            norm="batch",
            dropout=0.0,
            sources=all_from(SMALL),
        ),
        split=Split(
            by=our_choice("patient", "patients are kept whole"),
            train_slices=our_choice(6, "three patients train for each that validates"),
            validation_slices=our_choice(2, "three patients train for each that validates"),
            shortage=our_choice("error", "not used when patients are kept whole"),
            patient_test_share=our_choice(1 / 3, "every site has patients to test on, and some left to train on"),
            seed=our_choice(0, "any seed; other seeds test other patients"),
            judged_pixels=our_choice(50, "a score on 29 pixels is chance"),
            sources=all_from(SMALL),
        ),
        training=_training(),
        stages=_stages(),
        lung=_lung(),
        scoring=Scoring(
            threshold=0.5,
            slices=our_choice("infected", "as the papers do"),
            unseen="test",
            surface_tolerance_mm=3.0,
            calibration_bins=15,
            interval_level=0.95,
            interval_resamples=2000,
            interval_seed=0,
            sources=all_from(SMALL),
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
