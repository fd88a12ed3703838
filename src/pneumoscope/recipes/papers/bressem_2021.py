"""Bressem et al. 2021: a 3D U-Net on an encoder made for videos, in two sizes, on whole resized scans.

Sections are those of the preprint of 26 January 2021.
"""

from __future__ import annotations

from dataclasses import replace

from pneumoscope.recipes.papers.mueller_2021 import DEMO, REDUCED, mueller, volume_set
from pneumoscope.recipes.settings import OUR_CHOICE, Paper, all_from, our_choice, revise
from pneumoscope.recipes.volumes import (
    PaperValue,
    Phase,
    VolumeExperiment,
    VolumeFolds,
    VolumeNetwork,
    VolumePreparation,
    VolumeVariation,
)

paper = Paper("Bressem 2021")
CITATION = (
    "Bressem K. K., Niehues S. M., Hamm B., Makowski M. R., Vahldiek J. L., Adams L. C. 2021: 3D U-Net for "
    "segmentation of COVID-19 associated pulmonary infiltrates using transfer learning. Preprint of 26 January 2021"
)
NOTES = (
    "Table 1 and the abstract give 0.679, 0.648 and 0.405 as mean Dice; Table 3 gives 0.698, 0.623 and 0.403 for the "
    "same model. Table 1 is used; Table 3's values stand beside it.",
    "Clipping is printed as -2000 to +500 HU (section 2.2).",
    "'Varied cyclically during each epoch' and 'the first epochs were warm-up' (section 2.4) are read as fastai's one "
    "cycle over each training: up over a quarter of the steps, then down. Momentum stays as it is.",
    "The paper's encoder starts from Kinetics-400. Without network.encoder_weights=FILE (torchvision's "
    "r3d_18-b3b3357e.pth) it starts from fresh weights, and the first ten epochs then train a decoder on noise.",
    "117 of the 120 scans of RICORD 1a were used; which three were not is not said. Scans are split, not patients: "
    "folds.by=patient keeps patients together.",
    "The surface Dice of Ma et al. takes 3 mm for lesions; the paper says to have used their program and no tolerance.",
    "Perspective distortion (section 2.4) has no counterpart here; scaling and rotation stand for it. No ranges are "
    "printed, so they are ours.",
)
_TABLES = {  # table, metric, and for each set mean, deviation, lowest, highest
    ("1", "dice"): {
        "val": (0.679, 0.130, 0.398, 0.846),
        "covid19ctseg": (0.648, 0.132, 0.362, 0.783),
        "mosmed": (0.405, 0.213, 0.008, 0.675),
    },
    ("2", "nsd"): {
        "val": (0.781, 0.124, 0.480, 0.911),
        "covid19ctseg": (0.716, 0.135, 0.457, 0.862),
        "mosmed": (0.597, 0.270, 0.060, 0.926),
    },
}
_TABLE_3 = {"val": 0.698, "covid19ctseg": 0.623, "mosmed": 0.403}


def _paper() -> tuple[PaperValue, ...]:
    rows = []
    for (table, metric), sets in _TABLES.items():
        for test, (mean, deviation, low, high) in sets.items():
            for kind, value, spread in (("mean", mean, deviation), ("lowest", low, None), ("highest", high, None)):
                rows.append(_value(table, test, f"{metric}_{kind}", value, spread))
    rows += [_value("3", test, "dice_mean", value, None) for test, value in _TABLE_3.items()]
    return tuple(rows)


def _value(table: str, test: str, metric: str, value: float, deviation: float | None) -> PaperValue:
    where, name = f"{paper.name}, Table {table}", f"t{table}-{test}-{metric}"
    return all_from(where, PaperValue, name=name, table=table, k=1, setting="full", fold=0, test=test,
                         structure="infection", metric=metric, value=value, deviation=deviation)  # fmt: skip


def bressem() -> VolumeExperiment:
    """The paper's experiment: decoder, all of it, and all of it at the larger size; what differs from `mueller`."""
    base = mueller()
    low, high = (112, 112, 18), (256, 256, 20)
    scans, unused = "2.4: random, 85 % and 15 %: 100 and 17 of the 117 scans", OUR_CHOICE + "not used by this recipe"
    return replace(
        base,
        recipe="bressem-2021",
        title="3D U-Net on an R3D-18 encoder, whole scans in two sizes, from RICORD to two other sets",
        citation=CITATION,
        notes=NOTES,
        data=replace(
            base.data,
            sets=(
                volume_set("Bressem 2021, 2.1", "ricord", "*", "train", "A", 20),
                volume_set("Bressem 2021, 2.1", "covid19ctseg", "coronacases*", "test", "B", 10),
                volume_set("Bressem 2021, 2.1", "mosmed", "*", "test", "C", 10),
            ),
        ),
        preparation=VolumePreparation(
            clip_hu=paper((-2000.0, 500.0), "2.2"),
            scale=our_choice("unit", "the encoder was trained on pictures in [0, 1]"),
            spacing_mm=paper(None, "2.4: scans are resized, not resampled"),
            classes=paper("infiltrate", "3.1: infection against all else"),
        ),
        network=VolumeNetwork(
            kind=paper("r3d18_unet", "2.3"),
            features=paper(
                (64, 256, 128, 64, 32),
                "2.3 (stem of R3D-18); the decoder's widths are our choice: none are printed",
            ),
        ),
        augment=_augment(),
        phases=(
            _phase("decoder", "encoder", low, 6, 10, 0.01, our_choice(0.0, "none is named for the decoder's epochs")),
            _phase("low", "nothing", low, 6, 200, 0.001, 1e-5),
            _phase("high", "nothing", high, 1, 200, 1e-4, 1e-5),
        ),
        training=replace(
            revise(base.training, unused, plateau_epochs=15, plateau_factor=0.1, plateau_floor=0.0, plateau_least=0.0,
                   plateau_rest=0),
            optimiser=our_choice("adamw", "fastai's default is Adam with decoupled weight decay"),
            loss=paper("dice_cross_entropy", "2.4"),
            validation_boxes=our_choice(17, "every tuning scan once"),
            foreground=paper(0.0, "2.4: whole scans"),
        ),
        folds=VolumeFolds(
            by=paper("case", scans),
            k=paper(None, "2.4: one split"),
            validation_share=paper(0.145, scans),
            ablation=paper(False, "has no ablation"),
            seed=our_choice(0, "any; the paper names none"),
        ),
        scoring=replace(
            base.scoring,
            overlap=our_choice((0.0, 0.0, 0.0), "the whole scan is one window"),
            lesion_tolerance_mm=paper(3.0, "3.2: the metric of Ma et al., who take 3 mm"),
            ensemble=our_choice(False, "one model only"),
        ),
        paper=_paper(),
    )  # fmt: skip


def _augment() -> VolumeVariation:
    unnamed = "not named; without effect"
    return all_from(
        OUR_CHOICE + "section 2.4 names the kind and no numbers",
        VolumeVariation,
        probability=0.3,
        scale=(0.9, 1.1),
        rotate_deg=10.0,
        elastic_alpha=our_choice((0.0, 0.0), unnamed),
        elastic_sigma=our_choice((9.0, 9.0), unnamed),
        mirror_axes=(1, 2),
        brightness=(0.8, 1.25),
        contrast=(0.75, 1.33),
        gamma=our_choice((1.0, 1.0), unnamed),
        noise=(0.0, 0.02),
    )


def _phase(
    name: str, frozen: str, size: tuple[int, int, int], batch: int, epochs: int, rate: float, decay: float
) -> Phase:
    return all_from(
        "Bressem 2021, 2.4",
        Phase,
        name=name,
        frozen=frozen,
        size=size,
        whole=True,
        batch_size=batch,
        steps=our_choice(None, "an epoch shows each scan once"),
        max_epochs=epochs,
        patience=paper(None, "2.4: all epochs, then the best checkpoint"),
        learning_rate=rate,
        weight_decay=decay,
        schedule="cyclic",
        monitor="val_dice",
    )


def bressem_small() -> VolumeExperiment:
    """The same road on tiny synthetic scans: a few minutes, and scores that say nothing about the paper."""
    full = bressem()
    sets = tuple(revise(s, DEMO, phantom_patients=n) for s, n in zip(full.data.sets, (6, 2, 2), strict=True))
    sizes = ((32, 32, 8), (32, 32, 8), (48, 48, 12))
    phases = tuple(
        revise(phase, DEMO, size=size, batch_size=2, steps=6, max_epochs=epochs, learning_rate=rate)
        for phase, size, epochs, rate in zip(full.phases, sizes, (3, 30, 10), (0.003, 0.003, 0.001), strict=True)
    )
    return replace(
        full,
        recipe="bressem-2021-small",
        title="bressem-2021 on tiny synthetic scans",
        data=revise(replace(full.data, sets=sets), DEMO, phantom_size="tiny"),
        network=revise(full.network, DEMO, features=(8, 32, 16, 16, 8)),
        phases=phases,
        training=revise(full.training, DEMO, validation_boxes=2),
        folds=revise(full.folds, DEMO, validation_share=0.34),
        paper=(),
    )


OTHER_SCANNERS = (
    OUR_CHOICE + "more often and more strongly than in the full recipe: few scans, and test scans of noisier scanners "
    "with other fields of view"
)


def bressem_reduced() -> VolumeExperiment:
    """At reduced size on synthetic scans: minutes on a processor, and still well above a threshold."""
    full = bressem()
    sets = tuple(revise(s, REDUCED, phantom_patients=n) for s, n in zip(full.data.sets, (24, 4, 4), strict=True))
    low, high = (64, 64, 16), (96, 96, 24)
    plans = ((low, 3, 2, 0.003), (low, 3, 25, 0.003), (high, 2, 8, 0.001))
    phases = tuple(
        revise(phase, REDUCED, size=size, batch_size=batch, max_epochs=epochs, learning_rate=rate)
        for phase, (size, batch, epochs, rate) in zip(full.phases, plans, strict=True)
    )
    return replace(
        full,
        recipe="bressem-2021-reduced",
        title="bressem-2021 at reduced size on synthetic scans",
        data=revise(replace(full.data, sets=sets), REDUCED, phantom_size="small"),
        network=revise(full.network, REDUCED, features=(16, 64, 32, 16, 16)),
        augment=revise(full.augment, OTHER_SCANNERS, probability=0.5, scale=(0.8, 1.2), noise=(0.0, 0.04)),
        phases=phases,
        training=revise(full.training, REDUCED, validation_boxes=6),
        folds=revise(full.folds, REDUCED, validation_share=0.25),
        paper=(),
    )
