"""Right and left lung of a scan: a network says what is lung, Hounsfield units say where exactly it ends.

The shipped network sees the whole chest at once on voxels of 5.5 mm (`inference.chest`); it tells right from left, lung
from airways, gas and pleural fluid, whatever the density, but cannot place an edge within a millimetre. Air can: of air
the network only says whose it is. Networks on slices, such as those of studies, are joined in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pneumoscope import components
from pneumoscope.components import without_small
from pneumoscope.errors import Finding
from pneumoscope.geometry import Grid
from pneumoscope.inference.chest import KIND as CHEST_KIND
from pneumoscope.inference.chest import ChestInput, ChestVotes, chest_votes
from pneumoscope.inference.engines import predict_probability
from pneumoscope.inference.inputs import ModelInput, input_from_card
from pneumoscope.preprocess.slices import each_in_threads, from_slices, resize_nearest, to_slices
from pneumoscope.progress import Progress, silent
from pneumoscope.volume import LUNG_LABELS, Mask, Volume

if TYPE_CHECKING:
    from torch import nn

    from pneumoscope.inference.engines import Engine


@dataclass(frozen=True)
class LungRules:
    """How network and Hounsfield units are joined."""

    aerated_hu: float = -250.0  # voxels below are air or lung
    aerated_probability: float = 0.5  # air is lung from this network probability on
    # undecided air that hangs together with lung is lung up to this far away (thin sulci, bronchi's ends)
    reach_mm: float = 9.0
    # voxels that are not aerated are lung where a core thicker than twice `rim_mm` has this probability, and what hangs
    # together with it in the slice
    dense_probability: float = 0.7
    likely_probability: float = 0.5  # of what hangs together with such a core
    # see there. Thinner dense lung is the network's coarse border; vessels and holes aside it is none.
    rim_mm: float = 3.0
    # of networks that see one slice, which find lungs in the belly and the neck: what is dense is kept in a slice only
    # together with at least this share of aerated lung
    aerated_share: float = 0.1
    closing_mm: float = 4.0  # vessels and fissures narrower than twice this are filled in
    # what lung surrounds in a slice and is no larger is lung too (vessels, consolidation), whatever the network says;
    # the dome of the diaphragm is larger
    hole_cm2: float = 6.0
    # a connected piece of aerated lung below this is dropped, unless dense lung joins it; of two sides the one below
    # this is the other's
    smallest_ml: float = 5.0
    sure: float = 0.9  # what the network gives this probability and the rules leave out is counted and reported


def lungs_input(card: Mapping[str, Any]) -> ModelInput | ChestInput:
    """The preprocessing that the card of a lung network names.

    Raises:
        ModelError: for a card without, or with an unknown kind.
    """
    fields = card.get("preprocessing")
    if isinstance(fields, dict) and fields.get("kind") == CHEST_KIND:
        return ChestInput.from_card(card)
    return input_from_card(dict(card))


def find_lungs(
    volume: Volume,
    model: nn.Module | Engine,
    preprocessing: ModelInput | ChestInput,
    *,
    rules: LungRules | None = None,
    progress: Progress = silent,
    **compute: Any,
) -> tuple[Mask, tuple[Finding, ...]]:
    """Lungs of a scan on its grid, 1 = right and 2 = left.

    Args:
        model: a lung network, or one in its engine. One on whole chests tells sides, air that is no lung and fluid; of
            one on slices the first output channel is lung.
        preprocessing: from the model's card.
        rules: see `LungRules`.
        compute: device, precision and batch_size for `predict_probability`.

    Returns:
        The mask (empty when no lung is found) and what there is to report about it.
    """
    rules = rules or LungRules()
    stack = to_slices(volume.hu)  # (n, h, w), a view
    findings: tuple[Finding, ...] = ()
    if isinstance(preprocessing, ChestInput):
        progress("lungs", 0, 1)
        votes = chest_votes(stack, volume.grid.spacing_mm[::-1], _engine(model, compute), preprocessing)
        probability = votes.lung
        lungs = join_with_hu(stack, probability, volume.grid, rules, other=votes.airway + votes.gas)
        labels = _sided(lungs, votes, rules.smallest_ml / volume.grid.voxel_volume_ml)
        findings = (() if lungs.any() else (NO_LUNG,)) + _pleural(votes, volume.grid)
        progress("lungs", 1, 1)
    else:
        images = preprocessing.images(stack, None)
        probability = predict_probability(model, images, progress=progress, **compute)[:, 0]
        lungs = join_with_hu(stack, probability, volume.grid, rules)
        labels, findings = split_sides(lungs, volume.grid.spacing_mm)
    dropped_ml = _dropped_voxels(lungs, probability, volume.grid, rules) * volume.grid.voxel_volume_ml
    if dropped_ml > REPORTED_ML:
        findings += (
            Finding("SEG-LUNG-002", f"{dropped_ml:.0f} ml that the lung network is sure of are not in the lung mask"),
        )
    return Mask(from_slices(labels), volume.grid, dict(LUNG_LABELS)), findings


def _engine(model: nn.Module | Engine, compute: Mapping[str, Any]) -> Engine:
    from pneumoscope.inference.engines import Engine, make_engine

    if isinstance(model, Engine):
        return model
    return make_engine(model, **{name: compute[name] for name in ("device", "precision") if name in compute})


def _sided(lungs: NDArray[np.bool_], votes: ChestVotes, smallest: float) -> NDArray[np.uint8]:
    """Lungs (n, h, w) labelled by the side the network gives the higher probability.

    A side of fewer voxels than `smallest` is none: what one lung reaches over to where the other was taken out.
    """
    labels = np.zeros(lungs.shape, np.uint8)
    for k in np.flatnonzero(lungs.any(axis=(1, 2))):
        apart = _enlarged(votes.left[k] - votes.right[k], (lungs.shape[1], lungs.shape[2]))
        labels[k] = np.where(lungs[k], np.where(apart > 0, 2, 1), 0)
    right, left = (int(np.count_nonzero(labels == side)) for side in (1, 2))
    if min(right, left) < smallest:
        labels[lungs] = 1 if right > left else 2
    return labels


def _pleural(votes: ChestVotes, grid: Grid) -> tuple[Finding, ...]:
    """Findings where the network sees fluid or air in the pleural space.

    Air counts in the upper half of the chest's height only: further down it may be that of the stomach.
    """
    pixels = grid.shape[0] * grid.shape[1] / (votes.fluid.shape[1] * votes.fluid.shape[2])
    ml = pixels * grid.voxel_volume_ml
    fluid_ml = float(np.count_nonzero(votes.fluid >= 0.5)) * ml
    slices = np.flatnonzero((votes.lung + votes.fluid >= 0.5).any(axis=(1, 2)))
    air_ml = 0.0
    if slices.size:
        lower = int(slices[0] + (slices[-1] - slices[0]) // 2)
        air_ml = float(np.count_nonzero(votes.gas[lower : slices[-1] + 1] >= 0.5)) * ml
    findings = []
    if fluid_ml > PLEURAL_ML:
        findings.append(
            Finding("SEG-LUNG-003", f"about {fluid_ml:.0f} ml of fluid beside the lungs, not counted as lung")
        )
    if air_ml > PLEURAL_ML:
        findings.append(Finding("SEG-LUNG-004", f"about {air_ml:.0f} ml of air beside the lungs, not counted as lung"))
    return tuple(findings)


def join_with_hu(
    stack_hu: NDArray[np.float32],
    probability: NDArray[np.float32],
    grid: Grid,
    rules: LungRules,
    *,
    other: NDArray[np.float32] | None = None,
) -> NDArray[np.bool_]:
    """Lung voxels (n, h, w) from Hounsfield units (n, h, w) and network probability (n, rows, columns).

    Air is lung where the network says so, and a little further where it hangs together; then, slice by slice, come the
    dense voxels. `grid` is the scan's. `other` is the probability of air that is no lung; None for networks on slices.
    """
    views = _Views(probability, other, (stack_hu.shape[1], stack_hu.shape[2]))
    seen = stack_hu[:, *views.window]
    aerated, undecided = _aerated(seen, views, rules)
    _grow(aerated, undecided, [rules.reach_mm / step for step in grid.spacing_mm[::-1]])
    radii = np.asarray([[rules.closing_mm], [rules.rim_mm]]) / np.asarray(grid.spacing_mm[1::-1])
    closing, rim = (_ellipse(*np.maximum(1, np.round(radius)).astype(int)) for radius in radii)
    hole_pixels = 100 * rules.hole_cm2 / (grid.spacing_mm[0] * grid.spacing_mm[1])
    lungs = np.zeros(stack_hu.shape, bool)

    def join(k: int) -> None:
        both = _with_dense(aerated[k], views.lung(k), seen[k] >= rules.aerated_hu, closing, rim, rules)
        holes = _small_holes(both, hole_pixels)
        if other is not None:
            both |= holes & (views.other(k) < 0.5)
        else:
            both = _hanging_together(both | holes, aerated[k], rules.aerated_share)
        lungs[k][views.window] = both

    each_in_threads(join, np.flatnonzero((probability >= LEAST_PROBABILITY).any(axis=(1, 2))).tolist())
    return without_small(lungs, rules.smallest_ml / grid.voxel_volume_ml, connectivity=6)


class _Views:
    """The network's maps on a slice's pixels, in the window that holds every lung it sees.

    Args:
        probability: of lung, (n, rows, columns).
        other: of air that is no lung, likewise; None counts as none.
        size: (h, w) of the slices.
    """

    def __init__(
        self, probability: NDArray[np.float32], other: NDArray[np.float32] | None, size: tuple[int, int]
    ) -> None:
        self._lung, self._other, self._size = probability, other, size
        inside = probability.max(axis=0, initial=0) >= LEAST_PROBABILITY
        bounds = []
        for axis, full in enumerate(size):
            found, step = np.flatnonzero(inside.any(axis=1 - axis)), full / inside.shape[axis]
            low, high = (found[0] - 2, found[-1] + 3) if found.size else (0, 1)
            bounds.append(slice(max(0, int(low * step)), min(full, int(np.ceil(high * step)))))
        self.window = bounds[0], bounds[1]

    def lung(self, k: int) -> NDArray[np.float32]:
        """Probability of lung in slice k."""
        return _enlarged(self._lung[k], self._size)[self.window]

    def other(self, k: int) -> NDArray[np.float32] | float:
        """Probability of air that is no lung in slice k."""
        return 0.0 if self._other is None else _enlarged(self._other[k], self._size)[self.window]


def _aerated(
    stack_hu: NDArray[np.float32], views: _Views, rules: LungRules
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Air that is lung by the network's vote (n, h, w), and air that may yet be."""
    lung, undecided = np.zeros(stack_hu.shape, bool), np.zeros(stack_hu.shape, bool)

    def split(k: int) -> None:
        p = views.lung(k)
        air = (stack_hu[k] < rules.aerated_hu) & (p >= LEAST_PROBABILITY) & (p > views.other(k))
        lung[k] = air & (p >= rules.aerated_probability)
        undecided[k] = air & ~lung[k]

    each_in_threads(split, range(len(stack_hu)))
    return lung, undecided


def _grow(lung: NDArray[np.bool_], undecided: NDArray[np.bool_], steps: Sequence[float]) -> None:
    """Let lung grow into undecided voxels by so many voxels along (n, h, w) at most; changes `lung` in place."""
    import cv2

    rounds = max(1, round(max(steps)))
    kernel = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    along = max(1, round(rounds / max(1, round(steps[0]))))
    for number in range(rounds):
        before = lung.copy() if number % along == 0 else None
        for k in np.flatnonzero(undecided.any(axis=(1, 2))):
            grown = cv2.dilate(lung[k].astype(np.uint8), kernel) > 0
            if before is not None:
                for near in (k - 1, k + 1):
                    if 0 <= near < len(lung):
                        grown |= before[near]
            lung[k] |= grown & undecided[k]


def _with_dense(
    aerated: NDArray[np.bool_],
    p: NDArray[np.float32],
    solid: NDArray[np.bool_],
    closing: NDArray[np.uint8],
    rim: NDArray[np.uint8],
    rules: LungRules,
) -> NDArray[np.bool_]:
    """Aerated lung of one slice with its dense lung: vessels by closing, and what is thicker than a rim."""
    import cv2

    dense = solid & (p >= 0.5)
    closed = cv2.morphologyEx(aerated.astype(np.uint8), cv2.MORPH_CLOSE, closing, borderType=cv2.BORDER_CONSTANT) > 0
    core = cv2.erode((solid & (p >= rules.dense_probability)).astype(np.uint8), rim)
    around = cv2.dilate(cv2.dilate(core, rim), closing) > 0
    likely = (solid & (p >= rules.likely_probability)).astype(np.uint8)
    opened = np.asarray(cv2.dilate(cv2.erode(likely, rim), rim), np.uint8) & likely
    count, pieces = cv2.connectedComponents(opened, connectivity=4)
    cored = np.zeros(count, bool)
    cored[pieces[core > 0]] = True
    cored[0] = False
    return aerated | (dense & (closed | around | cored[pieces]))


def _hanging_together(both: NDArray[np.bool_], aerated: NDArray[np.bool_], least_share: float) -> NDArray[np.bool_]:
    """Pieces of a slice of which at least a share is aerated."""
    pieces, sizes = components.label(both, 4)
    share = ndimage.mean(aerated, pieces, np.arange(len(sizes)))
    keep = np.nan_to_num(share) >= least_share
    keep[0] = False
    return np.asarray(keep[pieces])


def _small_holes(mask: NDArray[np.bool_], largest: float) -> NDArray[np.bool_]:
    """Background pieces of a slice (4 neighbours) that the mask surrounds and that have at most `largest` pixels."""
    import cv2

    _, pieces, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] <= largest
    small[0] = False
    small[np.concatenate((pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]))] = False
    return np.asarray(small[pieces])


def _enlarged(plane: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """A map (rows, columns) on a slice's pixels, linear between centres: `resize_linear`, by OpenCV."""
    import cv2

    return np.asarray(cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR), np.float32)


def _ellipse(rows: int, columns: int) -> NDArray[np.uint8]:
    y, x = np.ogrid[-rows : rows + 1, -columns : columns + 1]
    return ((y / rows) ** 2 + (x / columns) ** 2 <= 1).astype(np.uint8)


def _dropped_voxels(lungs: NDArray[np.bool_], probability: NDArray[np.float32], grid: Grid, rules: LungRules) -> int:
    """Voxels that the network is sure of and that the rules left out, off the border that it places coarsely."""
    import cv2

    size = (lungs.shape[1], lungs.shape[2])
    around = [2 * round(BORDER_MM / step) + 1 for step in grid.spacing_mm[1::-1]]
    kernel = np.ones(around, np.uint8)
    dropped = 0
    for k, found in enumerate(lungs):
        sure = probability[k] >= rules.sure
        if sure.any():
            near = cv2.dilate(found.astype(np.uint8), kernel) > 0
            sure = _enlarged(probability[k], size) >= rules.sure
            dropped += int(np.count_nonzero(sure & ~near))
    return dropped


STATE_OF_FINDING = {"SEG-LUNG-002": "lung_left_out", "SEG-LUNG-003": "pleural_fluid", "SEG-LUNG-004": "pleural_air"}
"""Findings of `find_lungs` that a reader must know before believing the numbers, as `severity.states.STATES`."""

NO_LUNG = Finding("SEG-LUNG-000", "no lung was found in the scan", "error")

LEAST_PROBABILITY = 0.02  # Air with less is no lung, wherever it lies
PLEURAL_ML = 60.0  # More fluid or air than this in the pleural space is reported
REPORTED_ML = 30.0  # More than this left out against the network's vote is reported
BORDER_MM = 6.0  # Network and Hounsfield units may place the lung's border this far apart
SIDE_SIZE = 128  # Sides are separated on slices of at most this size; the cut between touching lungs is that coarse


def split_sides(
    lungs: NDArray[np.bool_], spacing_mm: tuple[float, float, float]
) -> tuple[NDArray[np.uint8], tuple[Finding, ...]]:
    """Label lungs (n, h, w) 1 = patient's right (left in the picture) and 2 = left.

    Lungs that touch (thin anterior junction) are cut: the mask is eroded until two large pieces part, and each voxel
    goes to the nearer piece. What never parts is one lung, of the side of the picture that it mostly lies on, with a
    finding; it is never shared out over a middle that nobody measured.
    """
    labels = np.zeros(lungs.shape, np.uint8)
    if not lungs.any():
        return labels, (NO_LUNG,)
    h, w = lungs.shape[1:]
    small_size = (min(h, SIDE_SIZE), min(w, SIDE_SIZE))
    small = resize_nearest(lungs, small_size)
    sampling = (spacing_mm[2], spacing_mm[1] * h / small_size[0], spacing_mm[0] * w / small_size[1])
    depth = ndimage.distance_transform_edt(small, sampling=sampling).astype(np.float32)
    seeds = _two_seeds(depth)
    if seeds is None:
        side = 1 if np.mean(np.nonzero(lungs)[2]) < (w - 1) / 2 else 2
        labels[lungs] = side
        return labels, (Finding("SEG-LUNG-001", f"one lung was found; taken as the {LUNG_LABELS[side]}"),)
    nearest = ndimage.distance_transform_edt(seeds == 0, sampling=sampling, return_distances=False, return_indices=True)
    side_map = seeds[tuple(nearest)]
    labels[lungs] = resize_nearest(np.ascontiguousarray(side_map), (h, w))[lungs]
    return labels, ()


def _two_seeds(depth: NDArray[np.float32]) -> NDArray[np.uint8] | None:
    """Two pieces of the mask, 1 the more to the right of the patient (lower column), found at the least erosion."""
    total, columns = np.count_nonzero(depth), np.arange(depth.shape[2])
    for erosion in (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 11.0, 15.0):
        pieces, sizes = components.label(depth > erosion, 6)
        large = np.argsort(sizes)[::-1][:2]
        if len(large) < 2 or sizes[large[1]] < 0.08 * total:
            continue
        two = [pieces == number for number in large]
        centres = [np.count_nonzero(piece, axis=(0, 1)) @ columns / np.count_nonzero(piece) for piece in two]
        if abs(centres[1] - centres[0]) < 0.1 * depth.shape[2]:  # one above the other: pieces of the same lung
            continue
        right, left = two if centres[0] < centres[1] else two[::-1]
        return right + np.uint8(2) * left
    return None
