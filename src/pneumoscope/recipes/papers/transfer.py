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
from pneumoscope.recipes.settings import OUR_CHOICE, Settings, revise, setting_fields
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

_SMALL = "chosen so that all strategies train within an hour on one processor core that computes in bf16"


def _ours(sheet: type[Settings], **reasons: str) -> dict[str, str]:
    """Sources of every leaf that has none of its own, the reasons where given."""
    own = {item.name for item in setting_fields(sheet) if not item.metadata["why"]}
    return {name: OUR_CHOICE + reasons.get(name, _SMALL) for name in sorted(own | set(reasons))}


def _data() -> Data:
    rows = ((1, "coronacases", "B", 7), (2, "radiopaedia", "A", 4), (3, "medseg", "C", 8))
    sites = tuple(
        Site(
            number=number,
            dataset="slices",
            label=label,
            cases="*",
            phantom_site=phantom,
            phantom_patients=patients,
            sources=_ours(
                Site,
                dataset="folders of 8-bit slices",
                label="the source's folder",
                cases="all scans",
                phantom_site="a synthetic site with another scanner and reader",
                phantom_patients="as few as the real sets have",
            ),
        )
        for number, label, phantom, patients in rows
    )
    return Data(
        sites=sites,
        phantom_size="small",
        phantom_seed=0,
        sources=_ours(Data, phantom_seed="any seed; fixed so that the study can be repeated"),
    )


def _preprocessing() -> Preprocessing:
    return Preprocessing(
        size=128,
        windows_hu=(GREY_WINDOW,),
        lung_channel=True,
        store="uint8",
        intensity="grey8",
        sources=_ours(
            Preprocessing,
            windows_hu="8-bit grey values, 0 to 255, as one channel",
            lung_channel="the second channel, as in Maganaris 2022a, section 3.1",
            store="the pictures are 8 bit",
            intensity="the pictures are no Hounsfield units",
        ),
    )


def _training() -> Training:
    return Training(
        optimiser="adam",
        weight_decay=0.0,
        schedule="cosine",
        batch_size=8,
        loss="dice_cross_entropy",
        monitor="val_dice",
        precision="auto",
        seed=0,
        augment="strong",
        hide_lung=0.5,
        ema=0.98,
        keep="last",
        sources=_ours(
            Training,
            keep="the best epoch on one or two validation patients was often the third of ten, which made "
            "equal budgets unequal; with a falling rate and averaged weights the last needs no such choice",
            loss="learns small lesions in few steps",
            monitor="Dice is what is reported",
            seed="any seed; fixed so that the study can be repeated",
            augment="other looks and sizes of the chest, as another site has them",
            hide_lung="a network that cannot do without the lung mask fails where it is poor",
            ema="steadier than the last step of a short training",
        ),
    )


def _stages() -> Stages:
    budget = Budget(
        max_epochs=24,
        patience=24,
        learning_rate=2e-3,
        epoch_slices=400,
        sources=_ours(
            Budget, patience="never stops early: equal budgets", epoch_slices="equal budgets, whatever the set's size"
        ),
    )
    sources = _ours(Stage, site="the order of the sets", start="each set after the other", strategy="all compared")
    chain = [Stage(name="Tr1", site=1, start=None, sources=sources)]
    for strategy in COMPARED:
        second = f"Tr1_R_2-{strategy}"
        chain.append(Stage(name=second, site=2, start="Tr1", strategy=strategy, sources=sources))
        chain.append(Stage(name=f"Tr1_R_2_R_3-{strategy}", site=3, start=second, strategy=strategy, sources=sources))
    retrain = revise(budget, OUR_CHOICE + _SMALL, max_epochs=12, patience=12, learning_rate=1e-3)
    return Stages(first=budget, retrain=retrain, chain=tuple(chain), sources={})


def _lung() -> LungModel:
    in_pictures = "not used for 8-bit pictures, which have no air of known value"
    budget = Budget(max_epochs=4, patience=4, learning_rate=3e-3, epoch_slices=400, sources=_ours(Budget))
    return LungModel(
        sites=(1, 2),
        features=(8, 16, 32, 64),
        max_slices=600,
        aerated_hu=-320.0,
        aerated_probability=0.3,
        dense_probability=0.75,
        closing_mm=4.0,
        smallest_ml=20.0,
        budget=budget,
        sources=_ours(
            LungModel,
            sites="the two sets with lung masks",
            **dict.fromkeys(
                ("aerated_hu", "aerated_probability", "dense_probability", "closing_mm", "smallest_ml"), in_pictures
            ),
        ),
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
            features=(16, 32, 64, 128, 128),
            out_channels=1,
            norm="batch",
            dropout=0.0,
            sources=_ours(Network, features="halved four times, a unit at the bottom sees the whole chest"),
        ),
        split=Split(
            by="patient",
            train_slices=6,
            validation_slices=2,
            shortage="error",
            patient_test_share=1 / 3,
            seed=0,
            judged_pixels=50,
            sources=_ours(
                Split,
                by="patients are kept whole",
                train_slices="three patients train for each that validates",
                validation_slices="three patients train for each that validates",
                shortage="not used when patients are kept whole",
                patient_test_share="every site has patients to test on, and some left to train on",
                seed="any seed; other seeds test other patients",
                judged_pixels="a score on 29 pixels is chance",
            ),
        ),
        training=_training(),
        stages=_stages(),
        lung=_lung(),
        scoring=Scoring(
            threshold=0.5,
            slices="infected",
            unseen="test",
            surface_tolerance_mm=3.0,
            calibration_bins=15,
            interval_level=0.95,
            interval_resamples=2000,
            interval_seed=0,
            sources=_ours(Scoring, slices="as the papers do"),
        ),
        paper=(),
        strategy=revise(
            plain_strategy(),
            OUR_CHOICE + "tried on the validation patients of seed 0, second stage: EWC 1e3, 1e5 and 1e8, LwF 3",
            ewc_weight=1e8,
            lwf_weight=3.0,
        ),
        sources={},
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
