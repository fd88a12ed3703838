"""What fixes a study of radiographs: sheets of settings, each value with its unit, bounds and source.

The sheets are of the same make as those of the CT studies (`recipes.schema`), so that `study show`, ``--set``, JSON
and the comparison of settings work alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pneumoscope.errors import InputError
from pneumoscope.recipes.settings import MAX_SEED, OUR_CHOICE, Settings, setting

MODELS = ("Model_0", "Model_1", "Model_2", "Model_3")
"""The paper's networks: source task, from scratch, carried from Model_0, ResNet-50."""

ARMS = ("border", "equalised", "lung_box", "balanced", "adults", "all")
"""Remedies against shortcuts, beside ``as paper``; see `study.xray_repeat`."""


@dataclass(frozen=True, kw_only=True)
class XrayData(Settings):
    """Which pictures."""

    children: str = setting()  # set of Dataset_0 and of the classes without COVID-19 of Dataset_1
    covid: tuple[str, ...] = setting()  # sets that give the class covid19 of Dataset_1, where their folders are given
    adults: str = setting()  # set of adults from before the pandemic, a control; it takes no part in the paper's stages
    # classes_0, classes_1: of the two datasets, by their numbers
    classes_0: tuple[str, ...] = setting()
    classes_1: tuple[str, ...] = setting()
    # pictures of each class of Dataset_0; none takes all
    per_class_0: tuple[int, ...] | None = setting("pictures", low=3)
    per_class_1: tuple[int, ...] = setting("pictures", low=3)  # pictures of each class of Dataset_1
    # when a class has fewer: take ``all`` and say so, or an ``error``
    shortage: str = setting(choices=("all", "error"))
    apart: bool = setting()  # patients whom Dataset_1 tests or validates on do not teach Model_0


@dataclass(frozen=True, kw_only=True)
class XrayPictures(Settings):
    """How a picture becomes the network's input."""

    side: int = setting("pixels", low=8, high=1024)  # rows and columns
    fit: str = setting(choices=("stretch", "pad"))  # ``stretch`` or ``pad``


@dataclass(frozen=True, kw_only=True)
class XraySplit(Settings):
    """Who trains, validates and tests."""

    # ``group``: patients, joined where they share a picture; ``image``: pictures, as the paper
    by: str = setting(choices=("group", "image"))
    test_share: float = setting("share", low=0.01, high=0.9)  # of all pictures
    validation_share: float = setting("share", low=0.01, high=0.9)  # of those that are not tested
    # correlation from which two pictures are taken for one
    correlation: float = setting("correlation", low=0.9, high=1.0)
    seed: int = setting(low=0, high=MAX_SEED)  # of draw and split; the second training uses the next, and so on


@dataclass(frozen=True, kw_only=True)
class XrayNetwork(Settings):
    """The networks."""

    features: tuple[int, ...] = setting("filters", low=1, high=2048)  # channels per block of the small CNN
    dropout: float = setting("probability", low=0.0, high=0.95)  # before its dense layer
    # channels of the first layer of Model_3; published weights have 64
    resnet_width: int = setting("filters", low=1, high=64)


@dataclass(frozen=True, kw_only=True)
class XrayTraining(Settings):
    """How they are trained."""

    # which of the paper's networks; none: the baselines and probes only, which take minutes
    stages: tuple[str, ...] | None = setting(choices=MODELS)
    optimiser: str = setting(choices=("adam",))  # Adam with beta 0.9 and 0.999
    # max_epochs, patience, batch_size: of every training and of each of its steps
    max_epochs: int = setting("epochs", low=1)
    patience: int = setting("epochs", low=1)
    batch_size: int = setting("pictures", low=1)
    learning_rate: float = setting(low=1e-8, high=10)  # from scratch, and of the dense layer alone
    fine_rate: float = setting(low=1e-8, high=10)  # once reused layers are unfrozen
    # plateau_epochs, plateau_factor: the rate is multiplied by the factor after so many epochs without a better
    # validation loss
    plateau_epochs: int = setting("epochs", low=1)
    plateau_factor: float = setting(low=1e-4, high=0.99)
    last_layers: int = setting("layers", low=1, high=50)  # of Model_3, unfrozen in its second step
    # trainings with seeds that follow one another; draw and split differ with them
    repeats: int = setting("trainings", low=1, high=100)
    precision: str = setting(choices=("auto", "fp32", "bf16"))  # ``auto``, ``fp32`` or ``bf16``
    seed: int = setting(low=0, high=MAX_SEED)  # of weights, order and dropout


@dataclass(frozen=True, kw_only=True)
class XrayHonest(Settings):
    """Baselines, probes, held-out sources and remedies."""

    thumbnail: int = setting("pixels", low=2, high=64)  # side of the thumbnails of the baseline
    corner_share: float = setting("share", low=0.02, high=0.5)  # side of a corner of the whole picture
    # side each corner is shrunk to; four of 8 x 8 are as many numbers as one of 16 x 16
    corner_thumbnail: int = setting("pixels", low=1, high=64)
    penalties: tuple[float, ...] = setting(low=0.0)  # L2 weights among which the validation loss chooses
    border: float = setting("share", low=0.0, high=0.39)  # share cut off at each edge by the remedy ``border``
    # clahe_limit, clahe_tiles: of the remedy ``equalised``
    clahe_limit: float = setting(low=0.1, high=100)
    clahe_tiles: int = setting("tiles", low=1, high=64)
    # top, bottom, left, right of the remedy ``lung_box``, and of what the probe is not shown
    lung_box: tuple[float, ...] = setting("share", low=0.0, high=1.0)
    # share of the adults' patients that the remedies ``adults`` and ``all`` may learn from; the others test everything
    adults_train: float = setting("share", low=0.1, high=0.9)
    # remedies for which the small CNN is trained as well; none: the baseline only
    networks: tuple[str, ...] | None = setting(choices=ARMS)
    held_out_networks: bool = setting()  # train the small CNN also with each source of COVID-19 left out
    # do both in so many draws only (baselines and the paper's networks are made in every draw)
    network_draws: int | None = setting("draws", low=1, default=None, why=OUR_CHOICE + "every draw")


@dataclass(frozen=True, kw_only=True)
class XrayScoring(Settings):
    """How results are summed up."""

    interval_level: float = setting("share", low=0.5, high=0.999)  # coverage
    interval_resamples: int = setting("resamples", low=10)  # draws of patients
    interval_seed: int = setting(low=0, high=MAX_SEED)  # of the draws
    timed_pictures: int = setting("pictures", low=1)  # classified one by one for the time per picture


@dataclass(frozen=True, kw_only=True)
class XrayPaperRow(Settings):
    """What the paper prints for one network, on its own test set."""

    name: str
    accuracy: float = setting("share", low=0.0, high=1.0)
    precision: float = setting("share", low=0.0, high=1.0)
    recall: float = setting("share", low=0.0, high=1.0)
    f1: float = setting("share", low=0.0, high=1.0)


@dataclass(frozen=True, kw_only=True)
class XrayPublished(Settings):
    """Other numbers of the paper."""

    dataset_0: tuple[int, ...] = setting("pictures", low=0)  # pictures per class
    ms_per_image: tuple[float, ...] = setting("ms", low=0.0)  # the fastest and the slowest network


@dataclass(frozen=True, kw_only=True)
class XrayExperiment(Settings):
    """A study of radiographs."""

    # may_grow, may_change: as in `schema.Experiment`
    may_grow: ClassVar[tuple[str, ...]] = ()
    may_change: ClassVar[tuple[str, ...]] = ("training.repeats",)

    recipe: str  # name in `pneumoscope study list`
    title: str  # one line
    citation: str  # the paper
    notes: tuple[str, ...]  # what the paper leaves open, and how it was read
    data: XrayData
    pictures: XrayPictures
    split: XraySplit
    network: XrayNetwork
    training: XrayTraining
    honest: XrayHonest
    scoring: XrayScoring
    published: XrayPublished
    paper: tuple[XrayPaperRow, ...]  # its results

    def __post_init__(self) -> None:
        super().__post_init__()
        data = self.data
        for classes, counts, what in ((data.classes_0, data.per_class_0, "0"), (data.classes_1, data.per_class_1, "1")):
            if len(set(classes)) != len(classes) or (counts is not None and len(counts) != len(classes)):
                raise InputError(
                    f"data.classes_{what} and data.per_class_{what} must be of one length, without a class twice; got "
                    f"{classes} and {counts}"
                )
        if len(data.classes_0) != len(data.classes_1):
            raise InputError("Model_2 carries the network of Dataset_0: both datasets need as many classes")
        stages = self.training.stages or ()
        if "Model_2" in stages and "Model_0" not in stages:
            raise InputError("Model_2 begins with Model_0; put Model_0 into training.stages")
        top, bottom, left, right = self.honest.lung_box if len(self.honest.lung_box) == 4 else (1, 0, 1, 0)
        if not (top < bottom and left < right):
            raise InputError(f"honest.lung_box needs top < bottom, left < right; got {self.honest.lung_box}")

    def paper_row(self, name: str) -> XrayPaperRow | None:
        """What the paper prints for a network; None when it prints nothing."""
        return next((row for row in self.paper if row.name == name), None)
