"""A whole chest at once for a 3D network: coarse, cut to the body, and what it says of every slice of the scan.

Arrays are in the house view (d, h, w): slices from the feet up, rows from front to back, columns from the patient's
right to the left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pneumoscope import components
from pneumoscope.errors import ModelError
from pneumoscope.geometry import Box
from pneumoscope.inference.windows3d import softmax
from pneumoscope.preprocess.spatial import axis_weights, coarse_size, resample_axes

if TYPE_CHECKING:
    from pneumoscope.inference.engines import Engine

KIND = "chest_volume"  # Kind of preprocessing in a card that `ChestInput` reads
TISSUE_HU = -300.0  # Denser voxels are body, table or bedding
SOLID_HU = -150.0  # Denser voxels hold no air
STRAY = 0.2  # Largest piece of lung outside the body, as a share of the largest piece; see `drop_strays`
FOAM_HU = -800.0  # At least a tenth of any lung is denser, emphysema included: vessels, fissures, the border
ISLAND = 0.2  # Largest island of one lung inside the other, as a share of its lung; see `one_side`

FLUID_ML, FLUID_HU, ALIKE_HU = 60.0, (-15.0, 25.0), 8.0
"""At least so much pleural fluid of such a density spreads to what is within so many HU of it; see `one_fluid`."""


@dataclass(frozen=True)
class ChestInput:
    """What the network was trained on."""

    spacing_mm: float = 4.5  # of its voxels along all axes, to half a voxel over the whole field
    # knots of the curve that brings Hounsfield units to [-1, 1], ascending; soft tissue gets more room
    hu: tuple[float, ...] = (-1024, -950, -700, -150, 0, 100, 300)
    value: tuple[float, ...] = (-1.0, -0.75, -0.3, 0.0, 0.35, 0.65, 1.0)  # the curve's values at the knots
    margin_mm: float = 18.0  # left around the body when a scan is cut to it
    # standard deviation in voxels of a Gaussian over a second view of the chest, whose answer is averaged with that of
    # the first: grain, as of thin lung or a sharp kernel, can look like the edge of a lung. 0 is one view.
    smooth_voxels: float = 0.0
    # names of the network's classes (`CLASSES` of scripts/painted_chest.py)
    labels: tuple[str, ...] = ("background", "right lung", "left lung")

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> ChestInput:
        """The preprocessing and the labels a model card names.

        Raises:
            ModelError: the card has none, another kind, or does not name both lungs.
        """
        fields, labels = card.get("preprocessing"), card.get("labels")
        try:
            given = dict(fields)  # type: ignore[arg-type]
            if given["kind"] != KIND:
                raise ModelError(f"the card names preprocessing {given['kind']!r}, expected {KIND}")
            hu, value = (tuple(float(v) for v in given[name]) for name in ("hu", "value"))
            names = tuple(str(labels[str(n)]) for n in range(len(labels)))  # type: ignore[arg-type, index]
            if not {"right lung", "left lung"} <= set(names):
                raise ModelError(f"the card's labels are {', '.join(names)}; expected right lung and left lung in them")
            smooth = float(given.get("smooth_voxels", 0.0))
            if not 0 <= smooth <= 10:
                raise ValueError(f"smooth_voxels {smooth:g}, expected 0 to 10")
            return cls(float(given["spacing_mm"]), hu, value, float(given["margin_mm"]), smooth, names)
        except (KeyError, TypeError, ValueError) as problem:
            raise ModelError(f"the card's preprocessing {fields!r} cannot be read: {problem!r}") from problem

    def as_card(self) -> dict[str, Any]:
        """What `from_card` reads."""
        knots = {"hu": list(self.hu), "value": list(self.value)}
        sizes = {"margin_mm": self.margin_mm, "smooth_voxels": self.smooth_voxels}
        return {"kind": KIND, "spacing_mm": self.spacing_mm, **knots, **sizes}

    def curve(self, hu: NDArray[np.float32]) -> NDArray[np.float32]:
        """Hounsfield units as the network sees them, clipped to [-1, 1]."""
        return np.interp(hu, self.hu, self.value).astype(np.float32)

    def coarse(self, stack_hu: NDArray[np.float32], spacing_mm: tuple[float, float, float]) -> NDArray[np.float32]:
        """The whole field of a scan (n, h, w) on the network's voxels."""
        shape = [coarse_size(n, step, self.spacing_mm) for n, step in zip(stack_hu.shape, spacing_mm, strict=True)]
        own = [n * step / out for n, step, out in zip(stack_hu.shape, spacing_mm, shape, strict=True)]
        return resample_axes(stack_hu, spacing_mm, shape, own)

    def body(self, coarse_hu: NDArray[np.float32]) -> tuple[NDArray[np.bool_], Box]:
        """The largest piece of tissue with what it surrounds in each slice, and its box with a margin.

        The whole field where there is no tissue.
        """
        tissue = ndimage.binary_opening(coarse_hu > TISSUE_HU, iterations=2)
        if not tissue.any():
            return ~tissue, (slice(None), slice(None), slice(None))
        pieces, sizes = components.label(tissue, 6)
        body = pieces == sizes.argmax()
        margin = round(self.margin_mm / self.spacing_mm)
        part = ndimage.find_objects(body.view(np.uint8))[0]
        d, h, w = (slice(max(0, side.start - margin), side.stop + margin) for side in part)
        return np.stack([ndimage.binary_fill_holes(plane) for plane in body]), (d, h, w)


@dataclass(frozen=True, eq=False)
class ChestVotes:
    """What the network says, per slice of the scan on its own coarse rows and columns: (n, rows, columns) each."""

    # right, left: probability of the lungs
    right: NDArray[np.float32]
    left: NDArray[np.float32]
    airway: NDArray[np.float32]  # of trachea and bronchi
    gas: NDArray[np.float32]  # of other air that is no lung: of the bowel, and in the pleural space
    fluid: NDArray[np.float32]  # of fluid in the pleural space

    @property
    def lung(self) -> NDArray[np.float32]:
        """Probability of either lung."""
        return self.right + self.left


def chest_votes(
    stack_hu: NDArray[np.float32], spacing_mm: tuple[float, float, float], engine: Engine, preprocessing: ChestInput
) -> ChestVotes:
    """Show a chest to a network and bring its answer to the scan's slices.

    Args:
        stack_hu: (n, h, w).
        spacing_mm: (n, h, w).
        engine: the network, ready to compute.
        preprocessing: from its card.
    """
    coarse_hu = preprocessing.coarse(stack_hu, spacing_mm)
    body, box = preprocessing.body(coarse_hu)
    image = np.ascontiguousarray(preprocessing.curve(coarse_hu[box]))
    probability = softmax(engine.logits(image[None, None]))[0]
    if preprocessing.smooth_voxels:
        smooth = ndimage.gaussian_filter(image, preprocessing.smooth_voxels)
        probability = (probability + softmax(engine.logits(smooth[None, None]))[0]) / 2
    one_side(probability, preprocessing.labels)
    drop_strays(probability, preprocessing.labels, body[box], coarse_hu[box])
    one_fluid(probability, preprocessing, coarse_hu[box])
    n, own = stack_hu.shape[0], stack_hu.shape[0] * spacing_mm[0] / coarse_hu.shape[0]
    weights = axis_weights(coarse_hu.shape[0], own, n, spacing_mm[0])

    def lain(name: str) -> NDArray[np.float32]:
        whole = np.zeros(coarse_hu.shape, np.float32)
        if name in preprocessing.labels:
            whole[box] = probability[preprocessing.labels.index(name)]
        return np.asarray(np.tensordot(weights, whole, axes=1), np.float32)

    return ChestVotes(*(lain(name) for name in ("right lung", "left lung", "airway", "gas", "pleural fluid")))


def one_side(probability: NDArray[np.float32], labels: tuple[str, ...]) -> None:
    """Give islands of one lung inside the other to it: exchange the two probabilities there, in place.

    An island is a piece of at most `ISLAND` of its lung's largest piece that touches the other lung's largest piece.
    """
    rows = [labels.index("right lung"), labels.index("left lung")]
    largest, islands = [], []
    for own, other in (rows, rows[::-1]):
        mask = (probability[own] >= probability[other]) & (probability[own] + probability[other] >= 0.5)
        pieces, sizes = components.label(mask, 6)
        largest.append((pieces == sizes.argmax()) & mask)
        small = (sizes > 0) & (sizes <= ISLAND * sizes.max())
        islands.append(pieces * small[pieces])
    for pieces, home in zip(islands, largest[::-1], strict=True):
        touching = np.unique(pieces[ndimage.binary_dilation(home)])
        where = np.isin(pieces, touching[touching > 0])
        right, left = (probability[row][where] for row in rows)
        probability[rows[0]][where], probability[rows[1]][where] = left, right


def drop_strays(
    probability: NDArray[np.float32], labels: tuple[str, ...], body: NDArray[np.bool_], coarse_hu: NDArray[np.float32]
) -> None:
    """Take lung out, in place, that lies in foam and blankets: pieces mostly outside the body, small or nearly all air.

    Lung that the edge of the field cuts open is outside the body too, but no small piece, and it has vessels and walls.
    """
    rows = [labels.index("right lung"), labels.index("left lung")]
    pieces, sizes = components.label(probability[rows].sum(axis=0) >= 0.5, 6)
    within = np.bincount(pieces[body], minlength=len(sizes))
    vessels = np.bincount(pieces[coarse_hu > FOAM_HU], minlength=len(sizes))
    stray = ((sizes <= STRAY * sizes.max()) | (10 * vessels < sizes)) & (2 * within < sizes)
    for row in rows:
        probability[row][stray[pieces]] = 0


def one_fluid(probability: NDArray[np.float32], preprocessing: ChestInput, coarse_hu: NDArray[np.float32]) -> None:
    """Give the pleural fluid, in place, the dense lung that hangs together with it and is as dense as it.

    The network tells fluid from consolidated lung by its rim; the middle of a side filled with fluid looks like either.
    """
    labels = preprocessing.labels
    if "pleural fluid" not in labels:
        return
    fluid, *lungs = (labels.index(name) for name in ("pleural fluid", "right lung", "left lung"))
    wet = probability[fluid] >= 0.5
    level = float(np.median(coarse_hu[wet])) if wet.any() else np.nan
    if np.count_nonzero(wet) * preprocessing.spacing_mm**3 < 1000 * FLUID_ML or not FLUID_HU[0] <= level <= FLUID_HU[1]:
        return
    solid = (coarse_hu > SOLID_HU) & (probability[[fluid, *lungs]].sum(axis=0) >= 0.5)
    weight = ndimage.gaussian_filter(solid.astype(np.float32), 1)
    mean = ndimage.gaussian_filter(np.where(solid, coarse_hu, 0), 1) / np.maximum(weight, 1e-3)
    pieces, _ = components.label(solid & (np.abs(mean - level) <= ALIKE_HU), 6)
    spread = np.unique(pieces[wet])
    where = np.isin(pieces, spread[spread > 0]) & ~wet
    probability[fluid][where] += probability[lungs].sum(axis=0)[where]
    for row in lungs:
        probability[row][where] = 0
