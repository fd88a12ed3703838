"""Mueller et al. 2021: a standard 3D U-Net on random boxes of 20 scans, 2- to 5-fold, four-way ablation.

Sections are those of the paper (Informatics in Medicine Unlocked 25, 100681). Where the paper is silent and the
authors' published program (github.com/frankkramer-lab/covid19.MIScnn) states a number, that is the source.
"""

from __future__ import annotations

from dataclasses import replace

from pneumoscope.recipes.settings import OUR_CHOICE, Paper, all_from, our_choice, revise, sourced
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
)

paper = Paper("Mueller 2021")
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
    rows = [_value("Figure 5", 5, "full", 0, ("val", "all classes", metric), value)
            for metric, value in _FIGURE_5.items()]  # fmt: skip
    for (k, test, structure), values in _TABLE_1.items():
        for metric, (value, deviation) in zip(_EACH, values, strict=True):
            rows.append(_value("1", k, "full", 0, (test, structure, metric), value, deviation))
    columns = [(setting, structure) for setting in reversed(SETTINGS) for structure in ("lungs", "infection")]
    for fold, numbers in _TABLE_2.items():
        for (setting, structure), value in zip(columns, numbers, strict=True):
            rows.append(_value("2", 5, setting, fold, ("val", structure, "dice"), value))
    return tuple(rows)


def _value(
    table: str, k: int, setting: str, fold: int, of: tuple[str, str, str], value: float, deviation: float | None = None
) -> PaperValue:
    test, structure, metric = of
    name = "-".join((f"t{table}", f"k{k}", setting, f"f{fold}", *of)).replace("tFigure 5", "figure5").replace(" ", "-")
    where = f"{paper.name}, Table {table}" if table.isdigit() else f"{paper.name}, section 3 on {table}"
    return all_from(where, PaperValue, name=name, table=table, k=k, setting=setting, fold=fold, test=test,
                         structure=structure, metric=metric, value=value, deviation=deviation)  # fmt: skip


def volume_set(where: str, name: str, cases: str, part: str, site: str, patients: int) -> VolumeSet:
    """A set with the place that describes it, and its synthetic stand-in."""
    stand_in = "a synthetic stand-in"
    return all_from(
        where,
        VolumeSet,
        name=name,
        cases=cases,
        part=part,
        phantom_site=our_choice(site, stand_in),
        phantom_patients=our_choice(patients, stand_in),
    )


def mueller() -> VolumeExperiment:
    """The paper's experiment, all 14 models and the 15 of the ablation."""
    no_surface = "as Ma et al. 2020; the paper has no surface score"
    return VolumeExperiment(
        recipe="mueller-2021",
        title="3D U-Net on random boxes of 20 scans: 2- to 5-fold, with and without preprocessing and augmentation",
        citation=CITATION,
        notes=NOTES,
        data=VolumeData(
            sets=(
                volume_set("Mueller 2021, 2.1: Ma et al., 20 scans", "covid19ctseg", "*", "train", "A", 20),
                volume_set("Mueller 2021, 2.1: An et al., 100 scans with annotation", "an2020", "*", "test", "B", 10),
            ),
            phantom_size=our_choice("small", "synthetic scans stand in where no data are given"),
            phantom_seed=our_choice(0, "any"),
        ),
        preparation=VolumePreparation(
            clip_hu=paper((-1250.0, 250.0), "2.2"),
            scale=paper("grey_zscore", "2.2"),
            spacing_mm=paper((1.58, 1.58, 2.70), "2.2"),
            classes=paper("lungs_infiltrate", "2.5"),
        ),
        network=all_from(
            "Mueller 2021, 2.5 and Figure 3: 32 to 512 maps",
            VolumeNetwork,
            kind="unet3d",
            features=(32, 64, 128, 256, 512),
        ),
        augment=all_from(
            PROGRAM,
            VolumeVariation,
            probability=paper(0.15, "2.3"),
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
        phases=(
            all_from(
                "Mueller 2021, 2.5",
                Phase,
                name="fit",
                frozen=paper("nothing", "2.5: a standard U-Net, trained from new weights"),
                size=paper((160, 160, 80), "2.4"),
                whole=paper(False, "2.4"),
                batch_size=2,
                steps=150,
                max_epochs=1000,
                patience=100,
                learning_rate=1e-3,
                weight_decay=sourced(0.0, PROGRAM + ": no weight decay"),
                schedule="plateau",
                monitor=sourced("train_loss", PROGRAM + ": the checkpoint of the lowest training loss"),
            ),
        ),
        training=all_from(
            "Mueller 2021, 2.5",
            VolumeTraining,
            optimiser="adam",
            loss="tversky_cross_entropy",
            plateau_epochs=15,
            plateau_factor=0.1,
            plateau_least=sourced(1e-4, PROGRAM),
            plateau_rest=sourced(1, PROGRAM),
            plateau_floor=1e-5,
            validation_boxes=our_choice(16, "as many as a twentieth of the epoch's boxes"),
            foreground=paper(0.0, "2.4: random cropping"),
            precision=sourced("fp32", FULL_PRECISION),
            seed=our_choice(0, "any; the paper names none"),
        ),
        folds=VolumeFolds(
            by=sourced("case", PROGRAM + ": an unseeded shuffle of the scans"),
            k=paper((2, 3, 4, 5), "2.6"),
            validation_share=our_choice(0.2, "not used with k"),
            ablation=paper(True, "2.6"),
            seed=our_choice(0, "the paper's draw has no seed and cannot be repeated"),
        ),
        scoring=VolumeScoring(
            overlap=paper((0.5, 0.5, 0.5), "2.4: half of the box"),
            lesion_tolerance_mm=our_choice(3.0, no_surface),
            lung_tolerance_mm=our_choice(1.0, no_surface),
            baseline=our_choice(True, "what a network has to beat"),
            ensemble=paper(True, "5: planned as further research"),
        ),
        paper=_paper(),
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
        title="mueller-2021 on tiny synthetic scans",
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
