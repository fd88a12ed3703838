"""What an experiment is: the data, the network, the trainings, the chain of stages, the scoring, the paper's table.

Every sheet is a `pneumoscope.recipes.settings.Settings`: keyword-only, frozen, each value with unit, bounds and source.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from pneumoscope.errors import InputError
from pneumoscope.recipes.settings import MAX_SEED, OUR_CHOICE, Settings, setting
from pneumoscope.recipes.stages import (
    SLICES,
    Strategy,
    VolumeSystem,
    plain_strategy,
    settled_systems,
    split_external,
    strategy_parts,
)

LOSSES = (
    "cross_entropy",
    "dice",
    "dice_cross_entropy",
    "pooled_dice",
    "pooled_dice_cross_entropy",
    "tversky",
    "tversky_cross_entropy",
)
"""Names of `pneumoscope.training.losses`; a test keeps them known there."""

NONE_NAMED = OUR_CHOICE + "the papers name none"


@dataclass(frozen=True, kw_only=True)
class Published(Settings):
    """What the paper's table says of one dataset; compared with what is read, never used to compute."""

    scans: int = setting("scans", low=1)
    slices: int = setting("slices", low=1)
    lung_slices: int = setting("slices", low=1)
    infiltrate_slices: int = setting("slices", low=1)
    train_slices: int = setting("slices", low=1)
    validation_slices: int = setting("slices", low=1)
    test_slices: int = setting("slices", low=1)
    epochs: int = setting("epochs", low=1)


@dataclass(frozen=True, kw_only=True)
class Site(Settings):
    """One dataset of the study."""

    number: int  # the set's number in the stage names (1, 2, 3)
    dataset: str = setting()  # name of the reader, as in `pneumoscope data list`
    # the paper's name of the set; of ``slices`` the source (``coronacases``, ``radiopaedia``, ``medseg``)
    label: str = setting()
    cases: str = setting()  # shell pattern of the cases used; others are left out
    phantom_site: str = setting(choices=("A", "B", "C"))  # synthetic site that stands in when no data are given
    phantom_patients: int = setting("patients", low=1)  # how many synthetic patients
    published: Published | None = None  # the paper's counts


@dataclass(frozen=True, kw_only=True)
class Data(Settings):
    """The sets, and the size of the synthetic ones."""

    sites: tuple[Site, ...]
    phantom_size: str = setting(choices=("tiny", "small", "full"))
    phantom_seed: int = setting(low=0, high=MAX_SEED)


@dataclass(frozen=True, kw_only=True)
class Preprocessing(Settings):
    """From Hounsfield units, or from 8-bit grey values, to channels."""

    # edge of the square slice the network sees; nearest-neighbour resize (8-bit slices: area average)
    size: int = setting("px", low=16, high=1024)
    # one input channel each, scaled to [0, 1] and clipped; 8-bit slices have the one window 0 to 255
    windows_hu: tuple[tuple[float, float], ...] = setting("HU", low=-2048, high=4096)
    lung_channel: bool = setting()  # the binary lung mask as last channel
    # how slices are held in memory; ``uint8`` rounds to 1/255 of a window
    store: str = setting(choices=("float16", "uint8"))
    # ``hu``, or ``grey8`` for pictures whose grey values are no Hounsfield units
    intensity: str = setting(
        choices=("hu", "grey8"), default="hu", why=OUR_CHOICE + "scans hold Hounsfield units unless a recipe says else"
    )
    # slices on each side that stages of system ``slices-2.5d`` see beside their own
    neighbours: int = setting("slices on each side", low=1, high=8, default=1, why=OUR_CHOICE + "for slices-2.5d only")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.intensity == "grey8" and self.windows_hu != (GREY_WINDOW,):
            raise InputError(f"8-bit slices have the one window {GREY_WINDOW}, got {self.windows_hu}")
        bad = [w for w in self.windows_hu if len(w) != 2 or w[0] >= w[1]]
        if bad or not self.windows_hu:
            raise InputError(f"preprocessing.windows_hu needs [low, high] pairs with low < high, got {self.windows_hu}")

    @property
    def channels(self) -> int:
        """Input channels of the network."""
        return len(self.windows_hu) + int(self.lung_channel)


GREY_WINDOW = (0.0, 255.0)  # The window of 8-bit slices


@dataclass(frozen=True, kw_only=True)
class Network(Settings):
    """The 2D U-Net: filters per level (the last is the bottom), normalisation, dropout."""

    features: tuple[int, ...] = setting("filters", low=1, high=2048)
    out_channels: int = setting("channels", low=1, high=2)
    norm: str = setting(choices=("batch", "instance", "none"))
    dropout: float = setting("share", low=0.0, high=0.95)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= len(self.features) <= 8:
            raise InputError(f"a U-Net needs 2 to 8 levels of features, got {self.features}")


@dataclass(frozen=True, kw_only=True)
class Split(Settings):
    """How slices become training, validation and test."""

    # ``slice`` is the paper's draw, half with and half without infiltrate, and leaks patients into the test set;
    # ``patient`` keeps patients whole and draws no balance; ``none`` tests on every patient, for stages that are
    # trained elsewhere
    by: str = setting(choices=("slice", "patient", "none"))
    # drawn for training (by patient: only its ratio to `validation_slices` counts)
    train_slices: int = setting("slices", low=2)
    validation_slices: int = setting("slices", low=2)  # drawn for validation
    # a set with too few slices is refused (``error``) or drawn in proportion
    shortage: str = setting(choices=("error", "proportional"))
    # patients kept for testing when the split is by patient
    patient_test_share: float = setting("share of patients", low=0.05, high=0.9)
    seed: int = setting(low=0, high=MAX_SEED)  # of the draw
    # by slice: this share of the patients is kept out of the draw and tested on, so that the scores of patients seen
    # and never seen are distinguished; 0 is the papers' draw
    held_out_share: float = setting(
        "share of patients", low=0.0, high=0.9, default=0.0, why=OUR_CHOICE + "the papers hold no patient out"
    )
    # by patient: whoever has fewer infected pixels, at the size the network sees, trains only
    judged_pixels: int = setting("px", low=0, default=0, why=OUR_CHOICE + "every patient may be tested on")


@dataclass(frozen=True, kw_only=True)
class Training(Settings):
    """What all trainings of the study share. Slices are always shuffled (2022b, 3.2)."""

    optimiser: str = setting(choices=("adam", "adamw"))
    weight_decay: float = setting("", low=0.0)
    schedule: str = setting(choices=("constant", "cosine"))
    batch_size: int = setting("slices", low=1)
    loss: str = setting(choices=LOSSES)
    monitor: str = setting()
    precision: str = setting(choices=("auto", "fp32", "bf16"))
    seed: int = setting(low=0, high=MAX_SEED)
    # ``slices`` shows every slice moved, mirrored and in another light each time, ``strong`` more so; see
    # `training.augment`
    augment: str = setting(
        choices=("none", "slices", "strong"), default="none", why=OUR_CHOICE + "the papers name none"
    )
    # probability of showing an augmented slice without its lung mask
    hide_lung: float = setting("probability", low=0.0, high=1.0, default=0.0, why=OUR_CHOICE + "the papers name none")
    # ``best`` keeps the weights of the epoch with the best `monitor`, ``last`` those of the last epoch
    keep: str = setting(choices=("best", "last"), default="best", why=OUR_CHOICE + "early stopping keeps the best")
    # decay of the running average of the weights that is validated and kept; 0 keeps the weights themselves
    ema: float = setting("", low=0.0, high=0.9999, default=0.0, why=NONE_NAMED)


@dataclass(frozen=True, kw_only=True)
class Budget(Settings):
    """How long and how fast one kind of stage trains; it stops after `patience` epochs without a better validation.

    `epoch_slices` fixes what an epoch is: so many sampled slices, whatever the size of the set. Stages with the same
    `epoch_slices`, `max_epochs` and batch then take the same number of steps. None: an epoch shows each slice once.
    """

    max_epochs: int = setting("epochs", low=1)
    patience: int = setting("epochs", low=1)
    learning_rate: float = setting("", low=0.0, high=10.0)
    epoch_slices: int | None = setting(
        "slices", low=1, default=None, why=OUR_CHOICE + "an epoch shows every training slice once"
    )


@dataclass(frozen=True, kw_only=True)
class Stage(Settings):
    """One training: on which set, from which stage's weights (None: from new ones), by which strategy.

    `strategy` is a name of `Strategy`, such as ``rehearsal+averaging``; None takes that of the experiment. `system` is
    what makes the stage: one of `recipes.stages`, which a stage and the one it starts from have in common. Of a stage
    that is trained elsewhere, site and start say what was done there; site 0 is not known.
    """

    name: str
    site: int = setting("set", low=0)
    start: str | None = setting()
    strategy: str | None = setting(default=None, why=OUR_CHOICE + "the strategy of the experiment")
    system: str = setting(default=SLICES, why=OUR_CHOICE + "the 2D U-Net of the experiment")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strategy is not None:
            strategy_parts(self.strategy)


@dataclass(frozen=True, kw_only=True)
class Stages(Settings):
    """First trainings, retrainings, and the chain in the order they run."""

    first: Budget
    retrain: Budget
    chain: tuple[Stage, ...]


@dataclass(frozen=True, kw_only=True)
class LungModel(Settings):
    """What supplies lung masks where a set has none."""

    # ``trained`` is a U-Net that learns from `sites`, as the papers do it; ``shipped`` is the model that `segment`
    # uses, which has seen none of the sets but other data
    supply: str = setting(
        choices=("trained", "shipped"), default="trained", why=OUR_CHOICE + "as the papers: a model made for it"
    )
    # the sets it learns from; it sees their training and validation parts and slices without lung
    sites: tuple[int, ...] = setting("set", low=1)
    features: tuple[int, ...] = setting("filters", low=1, high=2048)  # filters per level
    max_slices: int = setting("slices", low=2)  # at most this many training slices, evenly spaced
    aerated_hu: float = setting("HU", low=-1024, high=0)  # voxels below are air or lung
    # such a voxel is lung from this probability on
    aerated_probability: float = setting("probability", low=0.0, high=1.0)
    # any other voxel is lung from this probability on
    dense_probability: float = setting("probability", low=0.0, high=1.0)
    closing_mm: float = setting("mm", low=0.0, high=50.0)  # vessels and fissures narrower than twice this are filled in
    smallest_ml: float = setting("ml", low=0.0)  # smaller pieces of found lung are dropped
    budget: Budget  # epochs, patience, learning rate


@dataclass(frozen=True, kw_only=True)
class Scoring(Settings):
    """How stages are scored."""

    threshold: float = setting("probability", low=0.0, high=1.0)  # infiltrate is where the probability reaches it
    # which slices are averaged over; ``infected``: those whose reference holds infiltrate
    slices: str = setting(choices=("infected",))
    # the slices of a set that a stage has never been trained on: ``test`` as for every other set, or ``all`` with lung
    # (2022a). Differences between stages are taken over test slices in either case.
    unseen: str = setting(choices=("test", "all"), default="test", why=OUR_CHOICE + "every set by its test slices")
    # a contour within this distance of the other counts as found (NSD)
    surface_tolerance_mm: float = setting(
        "mm", low=0.0, high=50.0, default=3.0, why=OUR_CHOICE + "as Ma et al. 2021 for COVID-19 infection"
    )
    # bins of equal width in which probabilities are compared with what is true
    calibration_bins: int = setting(
        "bins", low=2, high=1000, default=15, why=OUR_CHOICE + "15 bins of equal width, as Guo et al. 2017"
    )
    interval_level: float = setting("share", low=0.5, high=0.999)  # coverage of intervals
    interval_resamples: int = setting("resamples", low=10)  # draws of patients per interval
    interval_seed: int = setting(low=0, high=MAX_SEED)  # of these draws


@dataclass(frozen=True, kw_only=True)
class PaperRow(Settings):
    """One printed row of the paper's table and the stage and test set it is about."""

    name: str
    stage: str
    test: int
    accuracy: float = setting("mean over slices", low=0.0, high=1.0)
    precision: float = setting("mean over slices", low=0.0, high=1.0)
    recall: float = setting("mean over slices", low=0.0, high=1.0)
    f1: float = setting("mean over slices", low=0.0, high=1.0)


@dataclass(frozen=True, kw_only=True)
class Experiment(Settings):
    """One study: what is read, how it is trained, what is scored, and what the paper found."""

    # parts that a resumed study may add to: new cells are computed, the others are taken as they are
    may_grow: ClassVar[tuple[str, ...]] = ("data.sites.", "stages.chain.", "systems.", "paper.")
    may_change: ClassVar[tuple[str, ...]] = ()  # values that a resumed study may change

    recipe: str  # name in `pneumoscope study list`
    title: str  # one line
    citation: str  # the paper
    notes: tuple[str, ...]  # misprints of the paper and where we had to choose a reading
    data: Data
    preprocessing: Preprocessing
    network: Network
    split: Split
    training: Training
    stages: Stages
    lung: LungModel
    scoring: Scoring
    paper: tuple[PaperRow, ...]  # the paper's table; empty for recipes of our own
    # how retrainings guard against forgetting, and the numbers of every way to do so
    strategy: Strategy = field(default_factory=plain_strategy)
    # the recipes on volumes that stages name as their system; filled in from the stages
    systems: tuple[VolumeSystem, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = [site.number for site in self.data.sites]
        names = [stage.name for stage in self.stages.chain]
        for what, values in (("set numbers", numbers), ("stage names", names)):
            if len(set(values)) != len(values) or not values:
                raise InputError(f"{self.recipe}: {what} must be given and unique, got {values}")
        for place, stage in enumerate(self.stages.chain):
            if stage.site not in numbers and (stage.site or not split_external(stage.system)[0]):
                raise InputError(f"stage {stage.name} trains on set {stage.site}; the sets are {numbers}")
            if stage.start is not None and stage.start not in names[:place]:
                raise InputError(f"stage {stage.name} starts from {stage.start!r}; before it run {names[:place]}")
        unknown = [n for n in self.lung.sites if n not in numbers]
        if unknown:
            raise InputError(f"the lung model learns from sets {unknown}, which are not among {numbers}")
        for row in self.paper:
            if row.stage not in names or row.test not in numbers:
                raise InputError(
                    f"the paper's row {row.name} is about stage {row.stage}, set {row.test}: not in the chain"
                )
        object.__setattr__(self, "systems", settled_systems(self))

    def site(self, number: int) -> Site:
        """The set of that number."""
        return next(site for site in self.data.sites if site.number == number)

    def stage(self, name: str) -> Stage:
        """The stage of that name."""
        return next(stage for stage in self.stages.chain if stage.name == name)

    def budget(self, stage: Stage) -> Budget:
        """How long a stage trains."""
        return self.stages.first if stage.start is None else self.stages.retrain

    def lineage(self, name: str) -> list[Stage]:
        """The stages that lead to `name`, first training first, itself last."""
        stage = self.stage(name)
        return [*(self.lineage(stage.start) if stage.start else []), stage]

    def main_stages(self) -> list[str]:
        """The stages that pictures show: the first of the longest lineages (the plain one, where strategies differ)."""
        return [stage.name for stage in max((self.lineage(s.name) for s in self.stages.chain), key=len)]

    def trained_on(self, name: str) -> list[int]:
        """The sets that a stage is known to have been trained on, in order.

        Of a stage that is trained elsewhere: those of its chain, where it has one or nothing is trained here.
        """
        lineage = self.lineage(name)
        chained = len(lineage) > 1 or any(stage.start == name for stage in self.stages.chain)
        known = chained or self.split.by == "none" or not split_external(lineage[0].system)[0]
        return [stage.site for stage in lineage if stage.site and known]

    def learnt_before(self, name: str) -> list[int]:
        """The sets that the stages before it in its lineage were trained on, without its own, in order."""
        earlier = dict.fromkeys(stage.site for stage in self.lineage(name)[:-1])
        return [site for site in earlier if site not in (0, self.stage(name).site)]

    def strategy_of(self, name: str) -> frozenset[str]:
        """The parts of the strategy that a stage is trained by; a first training is always plain."""
        stage = self.stage(name)
        return strategy_parts("plain" if stage.start is None else stage.strategy or self.strategy.name)

    def row_name(self, stage: str, test: int) -> str:
        """The paper's printed name of that cell, or one built by the paper's rule where it prints none."""
        own, printed = self.stage(stage), self.paper_row(stage, test)
        if printed is not None:
            return printed.name
        if own.strategy is not None or own.system != SLICES:  # strategies and systems share a lineage of sets
            return f"{stage}_Te{test}"
        first, *later = self.lineage(stage)
        retrained = "".join(f"_R_{item.site}" for item in later) or "_R_None"
        return f"Tr{first.site}{retrained}_Te{test}"

    def paper_row(self, stage: str, test: int) -> PaperRow | None:
        """What the paper reports for that cell; nothing of a stage that is made by another system than the paper's."""
        if self.stage(stage).system != SLICES:
            return None
        return next((row for row in self.paper if (row.stage, row.test) == (stage, test)), None)
