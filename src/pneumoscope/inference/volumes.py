"""A whole scan through 3D networks: windowed, resampled, slid over, and back on exactly the scan's grid.

Networks see (n, c, d, h, w): d slices from the feet up, h rows from the front to the back, w columns from the
patient's right to the left, as in `pneumoscope.preprocess.slices`. A model's card says under ``preprocessing`` what the
network was trained on (kind ``hu_volume``) and under ``labels`` what its channels mean. Memory: the scan, its resampled
copy, byte maps and one slab of probabilities (`VolumeInput.peak_bytes`); classes are decided before the way back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import InputError, ModelError
from pneumoscope.geometry import Grid
from pneumoscope.inference.engines import Engine
from pneumoscope.inference.windows3d import HANDED_ON, Predict, WindowPlan, slide, softmax
from pneumoscope.preprocess.slices import HuWindow, from_slices, to_slices
from pneumoscope.preprocess.spatial import Resample
from pneumoscope.progress import Progress, silent
from pneumoscope.volume import Volume

MEANINGS = ("background", "right lung", "left lung", "lung", "infiltrate")
"""What a class can be here; papers' words are in `_SYNONYMS`."""

VOLUME_KINDS = ("hu_volume", "whole_volume")  # Kinds of preprocessing in a card that `VolumeInput` reads

_SYNONYMS = {
    "lung right": "right lung",
    "lung left": "left lung",
    "infection": "infiltrate",
    "not infiltrate": "background",
}


@dataclass(frozen=True)
class VolumeInput:
    """What a 3D network was trained on."""

    # Hounsfield units outside are clipped (Mueller et al. 2021: -1250 to 250; Bressem et al. 2021: -2000 to 500).
    window: HuWindow
    plan: WindowPlan  # patch, overlap, blending, mirroring
    # (i, j, k) the scan is resampled to; None keeps its own. Linear; Mueller's program used cubic splines.
    spacing_mm: tuple[float, float, float] | None = None
    # (i, j, k) voxels the whole field of view is squeezed into instead (Bressem et al. 2021).
    shape: tuple[int, int, int] | None = None
    # ``unit`` spreads the window over [0, 1]; ``zscore`` also subtracts the scan's mean and divides by its deviation,
    # after resampling
    normalise: Literal["unit", "zscore"] = "unit"
    # spread the values that occur in a scan over so many whole numbers first (Mueller: 256); None does not
    grey_levels: int | None = None

    def __post_init__(self) -> None:
        if self.normalise not in ("unit", "zscore"):
            raise InputError(f"normalise must be unit or zscore, got {self.normalise!r}")
        if self.spacing_mm is not None and self.shape is not None:
            raise InputError("give spacing_mm or shape, not both")
        if self.grey_levels is not None and self.grey_levels < 2:
            raise InputError(f"grey_levels must be at least 2, got {self.grey_levels}")

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> VolumeInput:
        """The preprocessing a model card names.

        ``{"kind": "hu_volume", "window_hu": [-1250, 250], "spacing_mm": [1.58, 1.58, 2.7], "normalise": "zscore",
        "grey_levels": 256, "patch": [80, 160, 160], "overlap": [0.375, 0.5, 0.5], "blend": "mean", "mirror": []}``; the
        patch is (d, h, w), all but kind, window and patch may be left out. Kind ``whole_volume`` has, instead of
        spacing, patch and what follows, the ``shape`` (i, j, k) that the whole scan is squeezed into and seen at once.

        Raises:
            ModelError: for a card without, or with another kind.
        """
        fields = card.get("preprocessing")
        try:
            given: dict[str, Any] = dict(fields)  # type: ignore[arg-type]
            if given["kind"] not in VOLUME_KINDS:
                raise ModelError(f"the card names preprocessing {given['kind']!r}; known are {', '.join(VOLUME_KINDS)}")
            low, high = (float(bound) for bound in given["window_hu"])
            if given["kind"] == "whole_volume":
                i, j, k = (int(n) for n in given["shape"])
                grey = given.get("scale") == "grey_zscore"
                whole: dict[str, Any] = {"normalise": "zscore", "grey_levels": 256} if grey else {}
                return cls(HuWindow(low, high), WindowPlan((k, j, i)), shape=(i, j, k), **whole)
            spacing = given.get("spacing_mm")
            plan = {key: given[key] for key in ("patch", "overlap", "blend", "mirror") if key in given}
            return cls(
                HuWindow(low, high),
                WindowPlan(**plan),
                None if spacing is None else (float(spacing[0]), float(spacing[1]), float(spacing[2])),
                normalise=given.get("normalise", "unit"),
                grey_levels=given.get("grey_levels"),
            )
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as problem:
            raise ModelError(f"the card's preprocessing {fields!r} cannot be read: {problem!r}") from problem

    def grid(self, scan: Grid) -> Grid:
        """The grid the network works on."""
        if self.shape is not None:
            return scan.resize(self.shape)
        return scan if self.spacing_mm is None else scan.respace(self.spacing_mm)

    def image(self, volume: Volume) -> NDArray[np.float32]:
        """Network input (1, d, h, w) of a scan; a constant scan gives zeros under ``zscore``."""
        values = self.window.scale(volume.hu)
        if self.grey_levels is not None:
            low, high = float(values.min()), float(values.max())
            values -= np.float32(low)
            values *= np.float32((self.grey_levels - 1) / (high - low) if high > low else 0)
            np.rint(values, out=values)
            values /= np.float32(self.grey_levels - 1)
        if self.grid(volume.grid) != volume.grid:
            values, _ = Resample(self.grid(volume.grid), fill_hu=float(values.min())).move(values, volume.grid)
        if self.normalise == "zscore":
            values -= np.float32(values.mean(dtype=np.float64))
            deviation = float(values.std(dtype=np.float64))
            values /= np.float32(deviation if deviation > 0 else 1)
        return np.ascontiguousarray(to_slices(values))[None]

    def peak_bytes(self, scan: Grid, classes: int, maps: int = 1) -> int:
        """About what is needed beside the network's own layers: an upper bound, tested.

        Largest of three moments. Preparing: the scan, its windowed copy, that resampled and in the order of slices.
        Sliding: scan, image, slab, three times the slices that are handed on, four times a patch's probabilities, and
        so many byte maps. Going back: scan, byte maps on both grids and the copy being turned.
        """
        work = self.grid(scan)
        here, there = int(np.prod(scan.shape)), int(np.prod(work.shape))
        rows, columns = work.shape[1], work.shape[0]
        slab = self.plan.slab_bytes((work.shape[2], rows, columns), classes)
        handed = 3 * slab * min(HANDED_ON, self.plan.patch[0]) // self.plan.patch[0]
        votes = 16 * classes * self.plan.batch_size * int(np.prod(self.plan.patch))
        preparing = 8 * here + 8 * there
        sliding = 4 * here + 4 * there + slab + handed + votes + maps * there
        back = 4 * here + (maps + 1) * (here + there)
        return max(preparing, sliding, back)


@dataclass(frozen=True, eq=False)
class VolumePrediction:
    """What 3D networks say of a scan, on the scan's grid."""

    classes: NDArray[np.uint8]  # (i, j, k) uint8, the most probable class of each voxel
    # (i, j, k) uint8, 255 times the probability of the class asked for; None when none was
    probability: NDArray[np.uint8] | None
    # (i, j, k) uint8, 255 times the entropy of the averaged probabilities (`uncertainty.entropy`); None when not asked
    # for
    entropy: NDArray[np.uint8] | None
    # (i, j, k) uint8, 255 times the spread of the votes of members, mirrors and overlapping windows; None when not
    # asked for
    variance: NDArray[np.uint8] | None
    grid: Grid  # the scan's


def predict_volume(
    volume: Volume,
    members: Sequence[Engine],
    preprocessing: VolumeInput,
    *,
    uncertainty: bool = False,
    probability_of: int | Sequence[int] | None = None,
    progress: Progress = silent,
) -> VolumePrediction:
    """Classes of a scan from one network or the average of several trained on the same preprocessing.

    Args:
        members: networks in their engines; probabilities are averaged with equal weights.
        preprocessing: see `VolumeInput`.
        uncertainty: also make the maps of entropy and variance.
        probability_of: the class, or the classes, whose (joint) probability is kept as well.

    Raises:
        InputError: no member, or members of different numbers of classes.
        RunError: a network gave NaN or infinity.
    """
    channels = {member.out_channels for member in members}
    if len(channels) != 1:
        raise InputError(f"an ensemble needs networks of one number of classes, got {sorted(channels)}")
    work = preprocessing.grid(volume.grid)
    image = preprocessing.image(volume)
    names = ["classes"]
    names += ["probability"] if probability_of is not None else []
    names += ["entropy", "variance"] if uncertainty else []
    maps = {name: np.zeros(image.shape[1:], np.uint8) for name in names}
    for slab in slide(image, [_probability(m) for m in members], preprocessing.plan, progress=progress):
        rows = slice(slab.start, slab.start + len(slab.variance))
        maps["classes"][rows] = slab.probability.argmax(axis=0)
        if probability_of is not None:
            maps["probability"][rows] = to_bytes(slab.probability[np.atleast_1d(probability_of)].sum(axis=0))
        if uncertainty:
            maps["entropy"][rows] = to_bytes(entropy(slab.probability))
            maps["variance"][rows] = to_bytes(slab.variance)
    del image
    back = Resample(volume.grid, method="nearest", fill_hu=0)
    done: dict[str, NDArray[np.uint8]] = {}
    for name in names:
        lain = from_slices(maps.pop(name))
        done[name] = lain if work == volume.grid else back.move(lain, work)[0]
    return VolumePrediction(
        done["classes"],
        done.get("probability"),
        done.get("entropy"),
        done.get("variance"),
        volume.grid,
    )


def class_meanings(labels: Mapping[int, str] | Sequence[str]) -> dict[int, str]:
    """Class number to one of `MEANINGS`, from a card's ``labels``: a list, or a mapping whose keys may be text.

    Raises:
        ModelError: a class has no meaning here, or none is infiltrate.
    """
    named = labels.items() if isinstance(labels, Mapping) else enumerate(labels)
    meaning = {int(n): _SYNONYMS.get(str(name), str(name)) for n, name in named}
    if set(meaning.values()) - set(MEANINGS) or "infiltrate" not in meaning.values():
        raise ModelError(f"the card's labels {list(meaning.values())} are not all among {', '.join(MEANINGS)}")
    return meaning


def _probability(engine: Engine) -> Predict:
    """Softmax over classes; one logit becomes two classes by the sigmoid, which is the same as a second logit of 0."""

    def predict(patches: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = engine.logits(patches)
        if logits.shape[1] == 1:
            logits = np.concatenate((np.zeros_like(logits), logits), axis=1)
        return softmax(logits)

    return predict


def entropy(probability: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shannon entropy of class probabilities (classes, ...), divided by its largest value: 0 sure, 1 a coin toss.

    Zero probabilities count 0 (the limit of p log p). Of a single class the entropy is 0.
    """
    classes = probability.shape[0]
    out = np.zeros(probability.shape[1:], np.float32)
    if classes < 2:
        return out
    for p in probability:
        out -= p * np.log(np.maximum(p, np.float32(1e-12)))
    out /= np.float32(np.log(classes))
    return np.clip(out, 0, 1, out=out)


def to_bytes(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[0, 1] as 0 to 255, rounded; for maps that are written beside a mask."""
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
