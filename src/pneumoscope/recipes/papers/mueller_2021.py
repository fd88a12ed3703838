"""Mueller et al. 2021: a standard 3D U-Net on random boxes of 20 scans, 2- to 5-fold, four-way ablation.

Sections are those of the paper (Informatics in Medicine Unlocked 25, 100681). Where the paper is silent and the
authors' published program (github.com/frankkramer-lab/covid19.MIScnn) states a number, that is the source.
"""

from __future__ import annotations

from dataclasses import replace

from pneumoscope.recipes.settings import OUR_CHOICE, revise
from pneumoscope.recipes.volumes import (
    SETTINGS,
    PaperValue,
    Phase,
    VolumeData,
    VolumeExperiment,
    VolumeFolds,
    VolumeNetwork,
    VolumePreparation,
    VolumeScoring,
    VolumeSet,
    VolumeTraining,
    VolumeVariation,
    source,
)

PAPER = "Mueller 2021, "
PROGRAM = "the authors' program, covid19.MIScnn"
FULL_PRECISION = (
    OUR_CHOICE + "the papers name none; in bf16 on a processor (torch 2.13) the weight gradient of a small 3D "
    "convolution came out NaN"
)
DEMO = OUR_CHOICE + "small enough for minutes on two processor cores"
REDUCED = OUR_CHOICE + "large enough to beat a threshold, small enough for about ten minutes on one processor core"
CITATION = (
    "Mueller D., Soto-Rey I., Kramer F. 2021: Robust chest CT image segmentation of COVID-19 lung infection based on "
    "limited data. Informatics in Medicine Unlocked 25:100681, doi:10.1016/j.imu.2021.100681"
)
NOTES = (
    "Section 2.5 gives Adam 'an initial weight decay of 1e-3'; the program's 1e-3 is the learning rate, and no weight "
    "decay is used. Read as the learning rate.",
    "The overlap of windows is half a box in section 2.4 (80 x 80 x 40); the program changed it to 80 x 80 x 30 in "
    "November 2020. The paper's is used.",
    "The paper's folds are an unseeded shuffle of scans and cannot be drawn again; two of the 20 scans are of one "
    "patient (radiopaedia_10_85902_1 and _3). folds.by=patient keeps them together.",
    "Training, learning rate and the kept weights follow the training loss, as in the program: nothing is chosen on "
    "the validation fold.",
    "Mirroring right and left while right and left lung are classes asks the network for what cannot be told from a "
    "box alone; the paper does it. augment.mirror_axes=0,1 leaves it out.",
    "Table 2's averages are means of the medians of the folds. Table 1 prints other numbers for the same 5-fold run "
    "(0.804 and 0.761 for infection); which medians it means is not said. Both are given: over all scans, and over "
    "the folds' medians.",
    "Figure 4 draws the values of Table 1 as boxes and bars and prints no other number. Of Figure 5 the text gives the "
    "loss at which the 5-fold cross-validation settled and the mean Dice of all classes that goes with it.",
    "The ten Radiopaedia scans are 8-bit pictures. The reader turns them back into Hounsfield units first; in the "
    "authors' program their grey values 0 to 255 pass the clip to [-1250, 250], which cuts off 250 to 255. The z-score "
    "makes both nearly alike.",
    "The images are resampled linearly here and with third-order splines in the program; the text does not say.",
)
_EACH = ("dice", "iou", "sensitivity", "specificity")
_TABLE_1 = {
    (2, "val", "lungs"): ((0.960, 0.06), (0.923, 0.10), (0.970, None), (0.998, None)),
    (2, "val", "infection"): ((0.775, 0.20), (0.635, 0.19), (0.747, None), (0.999, None)),
    (2, "an2020", "infection"): ((0.555, 0.07), (0.386, 0.07), (0.485, None), (0.998, None)),
    (3, "val", "lungs"): ((0.966, 0.07), (0.934, 0.10), (0.968, None), (0.999, None)),
    (3, "val", "infection"): ((0.778, 0.19), (0.636, 0.18), (0.730, None), (0.999, None)),
    (3, "an2020", "infection"): ((0.598, 0.10), (0.426, 0.11), (0.580, None), (0.999, None)),
    (4, "val", "lungs"): ((0.951, 0.22), (0.907, 0.29), (0.948, None), (0.999, None)),
    (4, "val", "infection"): ((0.711, 0.27), (0.552, 0.25), (0.731, None), (0.999, None)),
    (4, "an2020", "infection"): ((0.661, 0.07), (0.494, 0.09), (0.561, None), (0.999, None)),
    (5, "val", "lungs"): ((0.971, 0.07), (0.944, 0.11), (0.971, None), (0.999, None)),
    (5, "val", "infection"): ((0.804, 0.20), (0.672, 0.19), (0.778, None), (0.999, None)),
    (5, "an2020", "infection"): ((0.623, 0.04), (0.453, 0.04), (0.513, None), (0.998, None)),
}
_TABLE_2 = {  # fold: lungs and infection of plain, no-preprocessing, no-augmentation, full; fold 0 is the average
    1: (0.711, 0.031, 0.397, 0.166, 0.867, 0.530, 0.907, 0.556),
    2: (0.046, 0.186, 0.275, 0.050, 0.979, 0.819, 0.977, 0.801),
    3: (0.190, 0.241, 0.168, 0.057, 0.951, 0.814, 0.952, 0.829),
    4: (0.080, 0.005, 0.175, 0.114, 0.979, 0.819, 0.979, 0.853),
    5: (0.520, 0.194, 0.360, 0.201, 0.964, 0.798, 0.967, 0.765),
    0: (0.309, 0.131, 0.275, 0.118, 0.948, 0.756, 0.956, 0.761),
}


_FIGURE_5 = {"loss": 0.383, "dice": 0.919}
"""Where the 5-fold cross-validation settled (D), and "a generalized DSC (average of all class-wise DSCs)"."""


def _paper() -> tuple[PaperValue, ...]:
    rows = [_value("Figure 5", 5, "full", 0, "val", "all classes", metric, value, None)
            for metric, value in _FIGURE_5.items()]  # fmt: skip
    for (k, test, structure), values in _TABLE_1.items():
        for metric, (value, deviation) in zip(_EACH, values, strict=True):
            rows.append(_value("1", k, "full", 0, test, structure, metric, value, deviation))
    columns = [(setting, structure) for setting in reversed(SETTINGS) for structure in ("lungs", "infection")]
    for fold, numbers in _TABLE_2.items():
        for (setting, structure), value in zip(columns, numbers, strict=True):
            rows.append(_value("2", 5, setting, fold, "val", structure, "dice", value, None))
    return tuple(rows)


def _value(
    table: str, k: int, setting: str, fold: int, test: str, structure: str, metric: str, value: float,
    deviation: float | None,
) -> PaperValue:  # fmt: skip
    name = f"t{table}-k{k}-{setting}-f{fold}-{test}-{structure}-{metric}".replace("tFigure 5", "figure5")
    name, printed = name.replace(" ", "-"), f"Table {table}" if table.isdigit() else f"section 3 on {table}"
    where = source(f"{PAPER}{printed}", "value", "deviation")
    return PaperValue(sources=where, name=name, table=table, k=k, setting=setting, fold=fold, test=test,
                      structure=structure, metric=metric, value=value, deviation=deviation)  # fmt: skip


def mueller() -> VolumeExperiment:
    """The paper's experiment, all 14 models and the 15 of the ablation."""
    return VolumeExperiment(
        sources={},
        recipe="mueller-2021",
        title="3D U-Net on random boxes of 20 scans: 2- to 5-fold, with and without preprocessing and augmentation",
        citation=CITATION,
        notes=NOTES,
        data=VolumeData(
            sources=source(OUR_CHOICE + "synthetic scans stand in where no data are given", "phantom_size")
            | source(OUR_CHOICE + "any", "phantom_seed"),
            sets=(
                _set("covid19ctseg", "train", "2.1: Ma et al., 20 scans", "A", 20),
                _set("an2020", "test", "2.1: An et al., 100 scans with annotation", "B", 10),
            ),
            phantom_size="small",
            phantom_seed=0,
        ),
        preparation=VolumePreparation(
            sources=source(PAPER + "2.2", "clip_hu", "scale", "spacing_mm") | source(PAPER + "2.5", "classes"),
            clip_hu=(-1250.0, 250.0),
            scale="grey_zscore",
            spacing_mm=(1.58, 1.58, 2.70),
            classes="lungs_infiltrate",
        ),
        network=VolumeNetwork(
            sources=source(PAPER + "2.5 and Figure 3: 32 to 512 maps", "kind", "features"),
            kind="unet3d",
            features=(32, 64, 128, 256, 512),
        ),
        augment=VolumeVariation(
            sources=source(PROGRAM, "scale", "rotate_deg", "elastic_alpha", "elastic_sigma", "mirror_axes",
                           "brightness", "contrast", "gamma", "noise") | source(PAPER + "2.3", "probability"),
            probability=0.15,
            scale=(0.85, 1.25),
            rotate_deg=15.0,
            elastic_alpha=(0.0, 900.0),
            elastic_sigma=(9.0, 13.0),
            mirror_axes=(0, 1, 2),
            brightness=(0.5, 2.0),
            contrast=(0.3, 3.0),
            gamma=(0.7, 1.5),
            noise=(0.0, 0.05),
        ),
        phases=(_phase(),),
        training=VolumeTraining(
            sources=source(PAPER + "2.5", "optimiser", "loss", "plateau_epochs", "plateau_factor", "plateau_floor")
            | source(PROGRAM, "plateau_least", "plateau_rest")
            | source(OUR_CHOICE + "as many as a twentieth of the epoch's boxes", "validation_boxes")
            | source(PAPER + "2.4: random cropping", "foreground")
            | source(FULL_PRECISION, "precision")
            | source(OUR_CHOICE + "any; the paper names none", "seed"),
            optimiser="adam",
            loss="tversky_cross_entropy",
            plateau_epochs=15,
            plateau_factor=0.1,
            plateau_least=1e-4,
            plateau_rest=1,
            plateau_floor=1e-5,
            validation_boxes=16,
            foreground=0.0,
            precision="fp32",
            seed=0,
        ),
        folds=VolumeFolds(
            sources=source(PAPER + "2.6", "k", "ablation")
            | source(PROGRAM + ": an unseeded shuffle of the scans", "by")
            | source(OUR_CHOICE + "the paper's draw has no seed and cannot be repeated", "seed")
            | source(OUR_CHOICE + "not used with k", "validation_share"),
            by="case",
            k=(2, 3, 4, 5),
            validation_share=0.2,
            ablation=True,
            seed=0,
        ),
        scoring=VolumeScoring(
            sources=source(PAPER + "2.4: half of the box", "overlap")
            | source(OUR_CHOICE + "as Ma et al. 2020; the paper has no surface score", "lesion_tolerance_mm",
                     "lung_tolerance_mm")
            | source(OUR_CHOICE + "what a network has to beat", "baseline")
            | source(PAPER + "5: planned as further research", "ensemble"),
            overlap=(0.5, 0.5, 0.5),
            lesion_tolerance_mm=3.0,
            lung_tolerance_mm=1.0,
            baseline=True,
            ensemble=True,
        ),
        paper=_paper(),
    )  # fmt: skip


def _set(name: str, part: str, where: str, site: str, patients: int) -> VolumeSet:
    sources = source(PAPER + where, "name", "cases", "part")
    sources |= source(OUR_CHOICE + "a synthetic stand-in", "phantom_site", "phantom_patients")
    return VolumeSet(sources=sources, name=name, cases="*", part=part, phantom_site=site, phantom_patients=patients)


def _phase() -> Phase:
    return Phase(
        sources=source(PAPER + "2.4", "size", "whole")
        | source(PAPER + "2.5", "batch_size", "steps", "max_epochs", "patience", "learning_rate", "schedule")
        | source(PAPER + "2.5: a standard U-Net, trained from new weights", "frozen")
        | source(PROGRAM + ": no weight decay", "weight_decay")
        | source(PROGRAM + ": the checkpoint of the lowest training loss", "monitor"),
        name="fit",
        frozen="nothing",
        size=(160, 160, 80),
        whole=False,
        batch_size=2,
        steps=150,
        max_epochs=1000,
        patience=100,
        learning_rate=1e-3,
        weight_decay=0.0,
        schedule="plateau",
        monitor="train_loss",
    )


def mueller_small() -> VolumeExperiment:
    """The same road on tiny synthetic scans: a few minutes, and scores that say nothing about the paper."""
    full = mueller()
    sets = tuple(revise(s, DEMO, phantom_patients=n) for s, n in zip(full.data.sets, (6, 2), strict=True))
    phase = revise(
        full.phases[0], DEMO, size=(32, 32, 12), steps=8, max_epochs=10, patience=10, learning_rate=3e-3,
    )  # fmt: skip
    return replace(
        full,
        recipe="mueller-2021-small",
        title="the road of mueller-2021 on tiny synthetic scans",
        data=revise(replace(full.data, sets=sets), DEMO, phantom_size="tiny"),
        preparation=revise(full.preparation, DEMO, spacing_mm=(6.0, 6.0, 26.0)),
        network=revise(full.network, DEMO, features=(8, 16, 32)),
        augment=revise(full.augment, DEMO, elastic_alpha=(0.0, 200.0)),
        phases=(phase,),
        training=revise(full.training, DEMO, validation_boxes=4, foreground=0.5),
        folds=revise(full.folds, DEMO, k=(2, 3)),
        paper=(),
    )


def mueller_reduced() -> VolumeExperiment:
    """At reduced size on synthetic scans: minutes on a processor, and still well above a threshold."""
    full = mueller()
    sets = tuple(revise(s, REDUCED, phantom_patients=n) for s, n in zip(full.data.sets, (16, 4), strict=True))
    phase = revise(
        full.phases[0], REDUCED, size=(64, 64, 16), steps=30, max_epochs=10, patience=10, learning_rate=3e-3,
    )  # fmt: skip
    return replace(
        full,
        recipe="mueller-2021-reduced",
        title="mueller-2021 at reduced size on synthetic scans",
        data=revise(replace(full.data, sets=sets), REDUCED, phantom_size="small"),
        preparation=revise(full.preparation, REDUCED, spacing_mm=(4.0, 4.0, 8.0)),
        network=revise(full.network, REDUCED, features=(16, 32, 64, 128)),
        augment=revise(full.augment, REDUCED, elastic_alpha=(0.0, 200.0)),
        phases=(phase,),
        training=revise(full.training, REDUCED, validation_boxes=4, foreground=0.5),
        folds=revise(full.folds, REDUCED, k=(2,), ablation=False),
        scoring=revise(full.scoring, REDUCED, overlap=(0.25, 0.25, 0.25)),
        paper=(),
    )
