"""What an experiment on whole volumes is: data, preparation, network, trainings, splits, scores, the paper's numbers.

Settings as in `recipes.schema`: every value carries its source, and `study show` lists them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from pneumoscope.errors import InputError
from pneumoscope.recipes.settings import MAX_SEED, OUR_CHOICE, Settings, setting

SETTINGS = ("full", "no-augmentation", "no-preprocessing", "plain")
"""The four ways of Mueller 2021, Table 2: both, and without one, the other, or either."""


@dataclass(frozen=True, kw_only=True)
class VolumeSet(Settings):
    """One dataset and the part it plays."""

    name: str = setting()  # of the dataset, as `--data NAME=ROOT` gives it
    cases: str = setting()  # pattern of the case names that are taken
    # ``train`` is split into training and validation; ``test`` is scored at the end
    part: str = setting(choices=("train", "test"))
    # phantom_site, phantom_patients: the synthetic stand-in
    phantom_site: str = setting(choices=("A", "B", "C"))
    phantom_patients: int = setting("patients", low=1, high=500)


@dataclass(frozen=True, kw_only=True)
class VolumeData(Settings):
    """The sets, and the size of synthetic scans."""

    sets: tuple[VolumeSet, ...]
    phantom_size: str = setting(choices=("tiny", "small", "full"))
    phantom_seed: int = setting(low=0, high=MAX_SEED)


@dataclass(frozen=True, kw_only=True)
class VolumePreparation(Settings):
    """From Hounsfield units to the network's array; see `datasets.tensors.VolumeRecipe`. (i, j, k) order."""

    clip_hu: tuple[float, float] = setting("HU", low=-4096, high=4096)
    scale: str = setting(choices=("grey_zscore", "unit"))
    spacing_mm: tuple[float, float, float] | None = setting("mm", low=0.1, high=50)
    classes: str = setting(choices=("lungs_infiltrate", "infiltrate", "lungs"))


@dataclass(frozen=True, kw_only=True)
class VolumeNetwork(Settings):
    """The 3D network."""

    kind: str = setting(choices=("unet3d", "r3d18_unet"))  # ``unet3d`` or ``r3d18_unet``
    # filters per level of the U-Net; for ``r3d18_unet`` the stem's channels, then the four of the decoder
    features: tuple[int, ...] = setting("filters", low=1, high=2048)
    # file of published weights of the encoder (``r3d18_unet`` only)
    encoder_weights: str | None = setting(default=None, why=OUR_CHOICE + "fresh weights where no file is given")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "r3d18_unet" and len(self.features) != 5:
            raise InputError(f"r3d18_unet has a stem and four decoder widths, got network.features {self.features}")
        if self.kind == "unet3d" and self.encoder_weights is not None:
            raise InputError("network.encoder_weights are for r3d18_unet only")


@dataclass(frozen=True, kw_only=True)
class VolumeVariation(Settings):
    """Augmentation on the fly; see `training.augment.VolumeAugment`."""

    probability: float = setting("probability of each kind", low=0, high=1)
    scale: tuple[float, float] = setting("factor", low=0.1, high=10)
    rotate_deg: float = setting("degrees", low=0, high=180)
    elastic_alpha: tuple[float, float] = setting("", low=0)
    elastic_sigma: tuple[float, float] = setting("voxels", low=0.1)
    mirror_axes: tuple[int, ...] = setting("axis (0 slices, 1 front-back, 2 right-left)", low=0, high=2)
    brightness: tuple[float, float] = setting("factor", low=0)
    contrast: tuple[float, float] = setting("factor", low=0)
    gamma: tuple[float, float] = setting("exponent", low=0.01)
    noise: tuple[float, float] = setting("standard deviation", low=0)


@dataclass(frozen=True, kw_only=True)
class Phase(Settings):
    """One training; the next one begins with its best weights."""

    name: str  # of its folder below the model's
    frozen: str = setting(choices=("nothing", "encoder"))  # ``encoder`` keeps the encoder's weights as they are
    # (i, j, k) voxels of the boxes; of the whole resized scan where `whole` is set
    size: tuple[int, int, int] = setting("voxels", low=1, high=1024)
    whole: bool = setting()  # scans are resized to `size` instead of being cut into boxes of it
    # batch_size, steps: boxes a step, steps an epoch; None for `steps` shows each scan once
    batch_size: int = setting("boxes", low=1)
    steps: int | None = setting("steps", low=1)
    # max_epochs, patience: None never stops early
    max_epochs: int = setting("epochs", low=1)
    patience: int | None = setting("epochs", low=1)
    # learning_rate, weight_decay, schedule: see `training.loop.TrainConfig`
    learning_rate: float = setting("", low=0, high=10)
    weight_decay: float = setting("", low=0)
    schedule: str = setting(choices=("constant", "plateau", "cyclic"))
    # what chooses the weights that are kept, and what `patience` waits for
    monitor: str = setting(choices=("train_loss", "val_loss", "val_dice"))


@dataclass(frozen=True, kw_only=True)
class VolumeTraining(Settings):
    """What all phases share."""

    optimiser: str = setting(choices=("adam", "adamw"))
    loss: str = setting(choices=("tversky_cross_entropy", "dice_cross_entropy", "cross_entropy"))
    # plateau_epochs, plateau_factor, plateau_least, plateau_rest, plateau_floor: of the schedule ``plateau``, on the
    # training loss
    plateau_epochs: int = setting("epochs", low=1)
    plateau_factor: float = setting("factor", low=0.001, high=0.999)
    plateau_least: float = setting("", low=0)
    plateau_rest: int = setting("epochs", low=0)
    plateau_floor: float = setting("", low=0)
    # fixed boxes of the validation scans that are scored after each epoch
    validation_boxes: int = setting("boxes", low=1)
    foreground: float = setting("share", low=0, high=1)  # share of boxes laid around infection
    precision: str = setting(choices=("auto", "fp32", "bf16"))
    seed: int = setting(low=0, high=MAX_SEED)


@dataclass(frozen=True, kw_only=True)
class VolumeFolds(Settings):
    """How scans become training and validation."""

    # ``case`` deals scans, as the papers do; ``patient`` keeps all scans of a person in one part
    by: str = setting(choices=("case", "patient"))
    # numbers of folds; every one is a cross-validation of its own. Empty for one split by `validation_share`.
    k: tuple[int, ...] | None = setting("folds", low=2, high=100)
    validation_share: float = setting("share", low=0.01, high=0.9)  # of the scans, where `k` is empty
    ablation: bool = setting()  # run the last k also without augmentation, without preprocessing, and without both
    seed: int = setting(low=0, high=MAX_SEED)  # of the draw


@dataclass(frozen=True, kw_only=True)
class VolumeScoring(Settings):
    """Prediction and scores."""

    # share of a window that the next one covers again, (i, j, k)
    overlap: tuple[float, float, float] = setting("share", low=0, high=0.95)
    # lesion_tolerance_mm, lung_tolerance_mm: of the normalised surface Dice
    lesion_tolerance_mm: float = setting("mm", low=0, high=50)
    lung_tolerance_mm: float = setting("mm", low=0, high=50)
    baseline: bool = setting()  # also score a plain threshold on Hounsfield units, on the same splits
    ensemble: bool = setting()  # also score the mean of the fold models on the test sets


def _printed(unit: str = "") -> Any:
    return setting(unit, low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class PaperValue(Settings):
    """One printed number: ``table, k, setting, fold`` (0: all), test set, structure, metric, value and deviation."""

    name: str
    table: str
    k: int
    setting: str
    fold: int
    test: str
    structure: str
    metric: str
    value: float = _printed()
    deviation: float | None = _printed("standard deviation")


@dataclass(frozen=True, kw_only=True)
class VolumeExperiment(Settings):
    """One study on volumes; the class attributes as in `schema.Experiment`."""

    may_grow: ClassVar[tuple[str, ...]] = ()
    may_change: ClassVar[tuple[str, ...]] = ()

    recipe: str
    title: str
    citation: str
    notes: tuple[str, ...]
    data: VolumeData
    preparation: VolumePreparation
    network: VolumeNetwork
    augment: VolumeVariation
    phases: tuple[Phase, ...]
    training: VolumeTraining
    folds: VolumeFolds
    scoring: VolumeScoring
    paper: tuple[PaperValue, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if [s.part for s in self.data.sets].count("train") != 1 or not self.phases:
            raise InputError(f"{self.recipe} needs exactly one set to train on and at least one phase")
        names = [phase.name for phase in self.phases]
        if len(set(names)) != len(names):
            raise InputError(f"{self.recipe}: phases need names of their own, got {names}")
        if any(phase.frozen == "encoder" for phase in self.phases) and self.network.kind != "r3d18_unet":
            raise InputError("only r3d18_unet has an encoder that can be frozen")
        if any(phase.whole for phase in self.phases) and self.preparation.spacing_mm is not None:
            raise InputError("scans that are resized as a whole have no spacing_mm; set it to none")

    @property
    def train_set(self) -> VolumeSet:
        """The set that is split."""
        return next(s for s in self.data.sets if s.part == "train")

    @property
    def test_sets(self) -> tuple[VolumeSet, ...]:
        """The sets that are scored at the end."""
        return tuple(s for s in self.data.sets if s.part == "test")
