"""The transfer study of Maganaris et al. 2022b: four channels, three datasets, six trainings, 13 printed rows.

Everything the paper states is here with the place it states it; everything it leaves open is marked as ours, with the
reason. Section, equation and table numbers are the paper's own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pneumoscope.recipes.schema import (
    Budget,
    Data,
    Experiment,
    LungModel,
    Network,
    PaperRow,
    Preprocessing,
    Published,
    Scoring,
    Site,
    Split,
    Stage,
    Stages,
    Training,
)
from pneumoscope.recipes.settings import OUR_CHOICE, Paper, all_from, our_choice, revise, setting_fields, sourced

CITATION = (
    "Maganaris C., Protopapadakis E., Bakalos N., Doulamis N., Kalogeras D., Angeli A.: Transferability limitations "
    "for Covid 3D Localization Using SARS-CoV-2 segmentation models in 4D CT images (2022), arXiv 2208.08343"
)

paper = Paper("Maganaris 2022b")

NOTES = (
    "The rows printed as Tr2_R_2_Te3 and Tr2_R_2_Te2 are, by the text of section 3.2, the model of set 2 retrained on "
    "set 3; by the paper's own rule they would be called Tr2_R_3_Te3 and Tr2_R_3_Te2 (the text calls the second "
    "Tr3_R_2_Te2). They keep their printed names here, and the column `stage` says Tr2_R_3.",
    "Section 3.1 gives set 1 as 214 training, 60 validation and 440 test slices; table 1 and section 3.2 give 440, 60 "
    "and 214. The second is followed: all networks are trained on 440 slices.",
    "Section 3.1 counts 714 masks and 713 slices with lung for set 1 and explains the odd one as a false annotation; "
    "so table 1 has 214 test slices where 713 - 440 - 60 leaves 213. We take slices with lung only.",
    "Section 3.2 prints an accuracy of 0.9870 for Tr1_R_2_R_3_Te1; table 2 has 0.986916, which rounds to 0.9869.",
    "The epochs of table 1 (154, 41, 39) are those of Tr1, Tr1_R_2 and Tr1_R_2_R_3. Those of Tr2, Tr2_R_3 and Tr3 are "
    "not given, nor is the cap on the epochs of Tr2_R_3; we use that of the other retrainings.",
    "The split is by slice and not by patient (section 3.1 says so): neighbouring slices of one patient stand in "
    "training and test, which flatters every score on a set that the model has been trained on.",
    "The paper names neither optimiser, loss, patience, network width, normalisation nor output threshold. They are "
    "marked as our choice.",
    "The lung network is described by one sentence (section 1); which slices it saw is not said.",
)


def site(paper: Paper, number: int, dataset: str, label: str, phantom_site: str, counts: tuple[int, ...]) -> Site:
    """A set as both papers describe it; `counts` is its row of table 1."""
    coronacases = dataset == "covid19ctseg"
    names = [item.name for item in setting_fields(Published)]
    return Site(
        number=number,
        dataset=paper(dataset, f"section 3.1; {OUR_CHOICE}name of the reader in pneumoscope"),
        label=paper(label, "table 1"),
        cases=paper("coronacases_*", "section 3.1: only Coronacases; the Radiopaedia scans are not in Hounsfield units")
        if coronacases
        else paper("*", "section 3.1: all cases"),
        phantom_site=our_choice(
            phantom_site, "synthetic stand-in with this set's slice distance, matrix and way of drawing"
        ),
        phantom_patients=paper(counts[0], "table 1, column '# DICOM Files'"),
        published=all_from(f"{paper.name}, table 1", Published, **dict(zip(names, counts, strict=True))),
    )


def chain(source: str, *stages: tuple[str, int, str | None]) -> tuple[Stage, ...]:
    """Stages from (name, set, the stage it starts from)."""
    return tuple(all_from(source, Stage, name=name, site=number, start=start) for name, number, start in stages)


def table_2(paper: Paper, rows: tuple[tuple[Any, ...], ...]) -> tuple[PaperRow, ...]:
    """The paper's scores from (printed name, stage, test set, accuracy, precision, recall, F1)."""
    names = ("name", "stage", "test", "accuracy", "precision", "recall", "f1")
    return tuple(all_from(f"{paper.name}, table 2", PaperRow, **dict(zip(names, row, strict=True))) for row in rows)


def _data() -> Data:
    return Data(
        sites=(
            site(paper, 1, "medseg", "CT 1-9", "A", (9, 829, 713, 373, 440, 60, 214, 154)),
            site(paper, 2, "covid19ctseg", "CT 10", "B", (10, 2581, 2156, 1351, 440, 60, 1656, 41)),
            site(paper, 3, "mosmed", "CT-1", "C", (50, 2049, 1748, 785, 440, 60, 1248, 39)),
        ),
        phantom_size=our_choice(
            "full", "matrices and slice distances of the real sets; smaller ones cannot give 440 + 60 slices"
        ),
        phantom_seed=our_choice(0, "any seed; fixed so that the study can be repeated"),
    )


def _preprocessing() -> Preprocessing:
    return Preprocessing(
        size=paper(320, "section 3.1: 320 x 320, nearest neighbour"),
        windows_hu=paper(
            ((-970.0, -150.0), (-700.0, -450.0), (-450.0, -150.0)),
            "section 3.1, equations 1 to 3; values outside [0, 1] are clipped",
        ),
        lung_channel=paper(True, "section 3.1: fourth channel, 1 in lung, 0 elsewhere"),
        store=our_choice("uint8", "half the memory; the rounding (0.5 to 1.6 HU) is below the noise of a CT"),
    )


def _network() -> Network:
    return Network(
        features=paper(
            (16, 32, 64, 128, 256),
            f"section 3.2 says four encoding and decoding levels; {OUR_CHOICE}16 filters, doubled per "
            "level (the text gives no widths), which a desktop processor can train",
        ),
        out_channels=paper(2, "section 3.1: infiltrate and its complement"),
        norm=our_choice("batch", "the paper names none; batch normalisation trains stably from a cold start"),
        dropout=our_choice(0.0, "the paper names none"),
    )


def _split() -> Split:
    return Split(
        by=paper("slice", "section 3.1: the split did not leave a subject out"),
        train_slices=paper(440, "table 1: 440 per set, half with and half without infiltrate"),
        validation_slices=paper(60, "table 1: 60 per set, half with and half without infiltrate"),
        shortage=our_choice("error", "a set that cannot give 440 + 60 balanced slices is not this experiment"),
        patient_test_share=our_choice(0.4, "the paper does not split by patient; used when split.by=patient only"),
        seed=our_choice(0, "the paper gives none"),
    )


def _training() -> Training:
    return Training(
        optimiser=our_choice("adam", "the paper names none; Adam fits its learning rate of 0.0001"),
        weight_decay=our_choice(0.0, "the paper names none"),
        schedule=our_choice("constant", "the paper gives one learning rate and no schedule"),
        batch_size=paper(45, "section 3.2: 45, shuffled"),
        loss=our_choice(
            "cross_entropy", "the paper names none; cross-entropy goes with sigmoid outputs of two opposite channels"
        ),
        monitor=our_choice("val_loss", "the paper speaks of early stopping and not of what is watched"),
        precision=our_choice("auto", "bf16 where the processor computes in it, else fp32"),
        seed=our_choice(0, "the paper gives none"),
    )


def _stages() -> Stages:
    patience = OUR_CHOICE + "the paper gives none; its runs stopped at epoch 154 of 200, 41 and 39 of 50"
    first = Budget(
        max_epochs=paper(200, "section 3.2: 200"),
        patience=sourced(20, patience),
        learning_rate=paper(1e-4, "section 3.2: 0.0001"),
    )
    retrain = Budget(
        max_epochs=paper(50, "section 3.2: reduced to 50"),
        patience=sourced(10, patience),
        learning_rate=paper(
            1e-4, f"section 3.2 gives 0.0001 for the first training; {OUR_CHOICE}the same when retraining"
        ),
    )
    stages = chain(
        "Maganaris 2022b, section 3.2 and Maganaris 2022b, table 2",
        ("Tr1", 1, None),
        ("Tr1_R_2", 2, "Tr1"),
        ("Tr1_R_2_R_3", 3, "Tr1_R_2"),
        ("Tr2", 2, None),
        ("Tr2_R_3", 3, "Tr2"),
        ("Tr3", 3, None),
    )
    return Stages(first=first, retrain=retrain, chain=stages)


def _lung() -> LungModel:
    budget = Budget(
        max_epochs=our_choice(40, "lungs are learnt fast; the paper gives none"),
        patience=our_choice(8, "the paper gives none"),
        learning_rate=our_choice(1e-3, "Adam's usual rate; the paper gives none"),
    )
    return LungModel(
        sites=paper(
            (1, 2), f"section 1: two of the three sets come with lung masks; {OUR_CHOICE}both teach the network"
        ),
        features=our_choice((8, 16, 32, 64, 128), "half the width of the infiltrate network; the paper gives none"),
        max_slices=our_choice(880, "as many as the infiltrate networks see of two sets (2 x 440)"),
        aerated_hu=our_choice(-320.0, "halfway between lung and soft tissue; places the edge the network cannot"),
        aerated_probability=our_choice(0.3, "the network and the air agree; the paper gives none"),
        dense_probability=our_choice(0.75, "dense infiltrate is lung where the network is sure; the paper gives none"),
        closing_mm=our_choice(4.0, "vessels belong to the lung, as readers draw it"),
        smallest_ml=our_choice(20.0, "keeps a collapsed lung and drops bowel gas; the paper gives none"),
        budget=budget,
    )


def _scoring() -> Scoring:
    return Scoring(
        threshold=our_choice(0.5, "section 3.1 speaks of a decimal threshold without its value"),
        slices=paper("infected", "section 3.2: averages per slice, over slices with marked areas only"),
        unseen=paper(
            "test", "section 3.1 and Maganaris 2022b, table 1: every model is tested on the test slices of each set"
        ),
        surface_tolerance_mm=our_choice(
            3.0,
            "the paper scores no surfaces; 3 mm is the tolerance of Ma et al. 2021 (Medical Physics 48, 1197) for "
            "COVID-19 infection",
        ),
        calibration_bins=our_choice(
            15, "the paper does not look at it; 15 bins as Guo et al. 2017 (On Calibration of Modern Neural Networks)"
        ),
        interval_level=our_choice(0.95, "the paper gives no intervals"),
        interval_resamples=our_choice(2000, "enough for two stable decimals"),
        interval_seed=our_choice(0, "fixed, so that the interval can be repeated"),
    )


_TABLE_2 = (
    ("Tr1_R_None_Te1", "Tr1", 1, 0.996067, 0.825346, 0.801561, 0.799373),
    ("Tr1_R_None_Te2", "Tr1", 2, 0.990696, 0.627217, 0.447298, 0.477114),
    ("Tr1_R_None_Te3", "Tr1", 3, 0.995938, 0.605107, 0.408050, 0.435020),
    ("Tr1_R_2_Te2", "Tr1_R_2", 2, 0.996483, 0.811026, 0.801767, 0.791740),
    ("Tr1_R_2_Te1", "Tr1_R_2", 1, 0.991956, 0.725649, 0.714044, 0.690094),
    ("Tr1_R_2_Te3", "Tr1_R_2", 3, 0.996360, 0.619701, 0.435246, 0.454912),
    ("Tr1_R_2_R_3_Te3", "Tr1_R_2_R_3", 3, 0.996989, 0.684802, 0.478032, 0.514396),
    ("Tr1_R_2_R_3_Te1", "Tr1_R_2_R_3", 1, 0.986916, 0.404010, 0.209785, 0.242582),
    ("Tr1_R_2_R_3_Te2", "Tr1_R_2_R_3", 2, 0.992636, 0.817556, 0.492780, 0.572272),
    ("Tr2_R_None_Te2", "Tr2", 2, 0.993587, 0.611667, 0.887216, 0.705930),
    ("Tr2_R_2_Te3", "Tr2_R_3", 3, 0.994351, 0.453238, 0.817842, 0.542704),
    ("Tr2_R_2_Te2", "Tr2_R_3", 2, 0.992053, 0.598488, 0.828759, 0.651196),
    ("Tr3_R_None_Te3", "Tr3", 3, 0.996315, 0.566403, 0.732628, 0.598084),
)
"""Printed name, true stage, test set, accuracy, precision, recall, F1."""


def four_channel() -> Experiment:
    """The study as published; 2022b."""
    return Experiment(
        recipe="maganaris-2022b",
        title="Transfer between three COVID-19 CT sets: U-Net on three HU windows and the lung mask",
        citation=CITATION,
        notes=NOTES,
        data=_data(),
        preprocessing=_preprocessing(),
        network=_network(),
        split=_split(),
        training=_training(),
        stages=_stages(),
        lung=_lung(),
        scoring=_scoring(),
        paper=table_2(paper, _TABLE_2),
    )


DEMO = (
    OUR_CHOICE
    + "the demo must finish in minutes on two processor cores without bf16, and every stage must learn; chosen "
    "by trying settings and seeds on the synthetic sites"
)

DEMO_LOSS = (
    OUR_CHOICE
    + "in 500 steps cross-entropy alone still found nothing on sets with small lesions; how it does over the "
    "thousands of steps of the full study was not tried"
)


def four_channel_demo() -> Experiment:
    """The same chain, small: synthetic sites, 96 x 96 pixels, a narrow network, few epochs, a quicker loss and rate."""
    full = four_channel()
    sites = tuple(
        revise(site, DEMO, phantom_patients=patients)
        for site, patients in zip(full.data.sites, (6, 6, 10), strict=True)
    )
    return replace(
        full,
        recipe="maganaris-2022b-demo",
        title="The transfer study of maganaris-2022b, small enough to watch: synthetic sites, minutes on two cores",
        data=replace(revise(full.data, DEMO, phantom_size="small"), sites=sites),
        preprocessing=revise(full.preprocessing, DEMO, size=96),
        network=revise(full.network, DEMO, features=(8, 16, 32, 64)),
        split=revise(full.split, DEMO, train_slices=80, validation_slices=20, shortage="proportional"),
        training=revise(
            revise(full.training, DEMO, batch_size=4, precision="fp32"), DEMO_LOSS, loss="pooled_dice_cross_entropy"
        ),
        stages=replace(
            full.stages,
            first=revise(full.stages.first, DEMO, max_epochs=24, patience=12, learning_rate=4e-3),
            retrain=revise(full.stages.retrain, DEMO, max_epochs=10, patience=5, learning_rate=3e-3),
        ),
        lung=replace(
            revise(full.lung, DEMO, features=(8, 16, 32), max_slices=120),
            budget=revise(full.lung.budget, DEMO, max_epochs=6, patience=3, learning_rate=3e-3),
        ),
    )
