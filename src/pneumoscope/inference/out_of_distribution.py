"""Whether a network may be asked about a radiograph: a frontal chest, like those it was trained on.

And how far a scan lies from those that a network of slices was trained on (last paragraph).

Three questions, each with a limit in the model's card that was chosen on validation pictures:

1. How far does it lie from frontal chests? The picture is shrunk, freed of brightness and contrast, and compared with
   a Gaussian on the training pictures' principal components plus even noise around them: probabilistic PCA (Tipping
   and Bishop 1999, J. R. Stat. Soc. B 61, 611), the distance within and from the space of Moghaddam and Pentland 1997
   (IEEE TPAMI 19, 696).
2. Would it be nearer if it were turned, stood on its head or had black and white exchanged? A chest X-ray is nearest as
   it is. This finds what the distance alone lets through: a turned or inverted chest is not far from chests.
3. How far do the network's own features lie from those of the nearest class in training (Lee et al. 2018, NeurIPS,
   equation 2, on the pooled last maps)?

The first two ask for the kind of picture and do not use the network; the third asks whether it is like the training
data. What lies far from chests, or nearer when turned, is ``none of these``; what passes a limit by less, or is a chest
unlike the training data (another hospital's, say), is ``cannot say``. So is what keeps the limits of 1 and 3 by little
both: CT slices do, chests seldom.
Decision 0017 says what was tried and left out.

Of scans, the frames that a network of infiltrate sees are shrunk to `FRAME_SIZE` pixels and compared with the principal
components of training frames; a scan's distance is the median over its slices that show lung. It notices a chest that
lies on its side or face, a body part that is no chest, a frame around half a lung; not disease, which is small beside
anatomy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import Finding, InputError, ModelError
from pneumoscope.io.files import sha256
from pneumoscope.preprocess.slices import to_slices
from pneumoscope.volume import Mask, Volume

if TYPE_CHECKING:
    from torch import nn

    from pneumoscope.inference.inputs import HuFrameInput

FILE = "familiar.safetensors"
SIDE = 24  # Of the shrunken picture
LEAST_CONTRAST = 8.0  # Grey levels (of 255): the deviation below which a shrunken picture is not stretched any further

TURNS = (
    "turned by 90 degrees",
    "upside down",
    "turned by 270 degrees",
    "mirrored top to bottom",
    "black and white exchanged",
)
"""What question 2 tries, by name."""

FAR = 1.5  # Times its limit: a distance above it makes ``none of these`` of a ``cannot say``; neither names a class


@dataclass(frozen=True)
class Limits:
    """Where answers stop."""

    distance: float  # of question 1; the largest that is answered
    upright: float  # of question 2: least ratio of the nearest turned distance and the own one; at least 1
    features: float  # of question 3; the largest that is answered
    both: float = 2.0  # largest sum of distance and features, each as a share of its own limit; 2 asks nothing more


@dataclass(frozen=True, eq=False)
class Scores:
    """What was measured of n pictures."""

    # (n,) mean squared distance per pixel in units of the training spread; about 1 for training pictures
    distance: NDArray[np.float64]
    upright: NDArray[np.float64]  # (n,) see `Limits`
    turn: NDArray[np.intp]  # (n,) which of `TURNS` is nearest
    features: NDArray[np.float64]  # (n,) squared Mahalanobis distance of the features per feature


@dataclass(frozen=True, eq=False)
class PictureSpace:
    """Principal components of training pictures of d pixels."""

    mean: NDArray[np.float32]  # (d,) of the training pictures
    axes: NDArray[np.float32]  # (k, d) principal components
    spread: NDArray[np.float32]  # (k,) variances along them
    noise: NDArray[np.float32]  # (1,) variance along each of the other directions

    def distances(self, pictures: NDArray[np.float32]) -> NDArray[np.float64]:
        """(n,) mean squared distance per pixel in units of the training spread; about 1 for training pictures."""
        off = pictures.reshape(len(pictures), -1).astype(np.float64) - self.mean
        along = off @ self.axes.T.astype(np.float64)
        rest = np.maximum((off**2).sum(axis=1) - (along**2).sum(axis=1), 0)
        return np.asarray(((along**2 / self.spread).sum(axis=1) + rest / float(self.noise[0])) / off.shape[1])


@dataclass(frozen=True, eq=False)
class Familiar(PictureSpace):
    """What frontal chests and training features look like; the space is that of the shrunken training pictures."""

    centres: NDArray[np.float32]  # (classes, f) mean features of each class
    precision: NDArray[np.float32]  # (f, f) inverse of the shrunken covariance that the classes share
    limits: Limits  # see `Limits`

    def __post_init__(self) -> None:
        components, features, pixels = len(self.spread), len(self.precision), SIDE * SIDE
        shapes = {
            "mean": (pixels,), "axes": (components, pixels), "spread": (components,), "noise": (1,),
            "centres": (len(self.centres), features), "precision": (features, features),
        }  # fmt: skip
        wrong = [name for name, shape in shapes.items() if getattr(self, name).shape != shape]
        if wrong:
            raise ModelError(f"arrays of other shapes than each other's: {', '.join(wrong)}")

    def score(self, squares: NDArray[np.uint8], features: NDArray[np.floating]) -> Scores:
        """Answer the three questions for pictures (n, side, side) as the network sees them and its features (n, f)."""
        small = shrunken(squares)
        own = self.distances(small)
        turned = np.stack([self.distances(t) for t in _turned(small)]) if len(small) else np.zeros((5, 0))
        nearest = turned.argmin(axis=0)
        ratio = turned.min(axis=0) / np.maximum(own, 1e-9)
        return Scores(own, ratio, nearest.astype(np.intp), self._feature_distance(np.asarray(features, np.float64)))

    def _feature_distance(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        if features.ndim != 2 or features.shape[1] != self.centres.shape[1]:
            raise ModelError(
                f"the model gives features {features.shape}, its {FILE} was made for (n, {self.centres.shape[1]}); "
                "copy the model folder again"
            )
        matrix = self.precision.astype(np.float64)
        apart = [features - centre for centre in self.centres.astype(np.float64)]
        return np.asarray(np.min([np.einsum("nf,fg,ng->n", o, matrix, o) for o in apart], axis=0) / features.shape[1])

    def reason(self, scores: Scores, row: int) -> tuple[str, str]:
        """The verdict on one picture and why: ``none of these`` or ``cannot say``; two empty texts when familiar."""
        limits = self.limits
        distance, upright = float(scores.distance[row]), float(scores.upright[row])
        far = f"(distance {distance:.2f}, limit {limits.distance:.2f})"
        if upright < 1:
            turn = TURNS[scores.turn[row]]
            return "none of these", f"is not an upright frontal chest X-ray; most like one when {turn}"
        if distance > FAR * limits.distance:
            return "none of these", f"does not look like a frontal chest X-ray {far}"
        if not distance <= limits.distance:
            return "cannot say", f"does not look like the chest X-rays the model was trained on {far}"
        if not upright >= limits.upright:
            return (
                "cannot say",
                f"might not stand upright; nearly as near to a chest X-ray when {TURNS[scores.turn[row]]}",
            )
        if not scores.features[row] <= limits.features:
            return "cannot say", (
                f"is unlike the images the model was trained on (distance {scores.features[row]:.2f}, "
                f"limit {limits.features:.2f})"
            )
        both = distance / limits.distance + float(scores.features[row]) / limits.features
        if not both <= limits.both:
            return "cannot say", (
                f"lies at the edge of the training images in appearance and features (together {both:.2f}, "
                f"limit {limits.both:.2f})"
            )
        return "", ""


def shrunken(squares: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(n, SIDE, SIDE) with mean 0 and deviation 1 each: brightness and contrast do not count."""
    import cv2

    small = np.empty((len(squares), SIDE, SIDE), np.float32)
    for place, square in enumerate(squares):
        shrunk = cv2.resize(np.asarray(square, np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        small[place] = (shrunk - shrunk.mean()) / max(float(shrunk.std()), LEAST_CONTRAST)
    return small


def _turned(small: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """In the order of `TURNS`. Mirrored left to right is left out: it looks like a chest, and is not found."""
    quarter = [np.rot90(small, turns, axes=(1, 2)) for turns in (1, 2, 3)]
    return [*quarter, small[:, ::-1], -small]


def read_familiar(folder: str | Path, entry: Mapping[str, Any]) -> Familiar:
    """Read what the card's entry ``familiar`` names; the limits are those of the card.

    Raises:
        ModelError: absent, damaged or incomplete.
    """
    arrays = read_space(folder, entry)
    try:
        limits = Limits(**{name: float(value) for name, value in entry["limits"].items()})
        return Familiar(**arrays, limits=limits)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise incomplete(folder, error) from None


def read_space(folder: str | Path, entry: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """The arrays that a card's entry names.

    Raises:
        ModelError: absent or damaged.
    """
    from pneumoscope.models.weights import read_tensors

    path = Path(folder) / FILE
    named = isinstance(entry, Mapping) and entry.get("file") == FILE and path.is_file()
    if not named or sha256(path) != entry.get("sha256"):
        raise ModelError(f"{FILE} is absent or not the one of the card; copy the model folder again", path=folder)
    try:
        return {name: tensor.numpy() for name, tensor in read_tensors(path).items()}
    except InputError as error:
        raise incomplete(folder, error) from None


def incomplete(folder: str | Path, error: Exception) -> ModelError:
    """What is raised when arrays or limits are missing or of another kind."""
    return ModelError(
        f"{FILE} or its limits in the card are incomplete ({type(error).__name__}); copy the model folder again",
        path=folder,
    )


FRAME_SIZE = (24, 32)
SCAN_SLICES = 40  # Measured of a scan, at even distances

FINDING = "SEG-SCAN-001"


@dataclass(frozen=True, eq=False)
class ScanSpace:
    """Frames of training scans, and how far from them a scan may lie."""

    space: PictureSpace  # of frames as `shrunken_frames` gives them
    limit: float  # largest distance of a scan that is not reported

    def distance(self, frames_hu: NDArray[np.floating]) -> float:
        """Of the frames (n, h, w) of one scan in Hounsfield units; n of at least 1."""
        return float(np.median(self.space.distances(shrunken_frames(frames_hu))))

    def of_scan(self, seen: HuFrameInput, volume: Volume, lungs: Mask) -> float | None:
        """Distance of a scan whose slices a network sees through `seen`; None without lung."""
        inside = to_slices(lungs.labels) > 0
        rows = np.flatnonzero(inside.any(axis=(1, 2)))
        if len(rows) == 0:
            return None
        some = rows[np.linspace(0, len(rows) - 1, min(SCAN_SLICES, len(rows))).astype(int)]
        return self.distance(seen.fitted(inside).framed(to_slices(volume.hu)[some]))

    def findings(self, distance: float | None) -> tuple[Finding, ...]:
        """What there is to report."""
        if distance is None or distance <= self.limit:
            return ()
        message = (
            f"the slices look unlike the chest CTs the infiltrate model was trained on (distance {distance:.2f}, limit "
            f"{self.limit:.2f}); check orientation, body part and lung mask before using its numbers"
        )
        return (Finding(FINDING, message),)


def shrunken_frames(frames_hu: NDArray[np.floating]) -> NDArray[np.float32]:
    """(n, *FRAME_SIZE) of (HU + 1000) / 1000."""
    import cv2

    scaled = (np.asarray(frames_hu, np.float32) + 1000) / 1000
    size = (FRAME_SIZE[1], FRAME_SIZE[0])
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in scaled])


def read_scan_space(folder: str | Path, entry: Mapping[str, Any]) -> ScanSpace:
    """Read what the card's entry ``familiar`` names.

    Raises:
        ModelError: absent, damaged or incomplete.
    """
    if not isinstance(entry, Mapping):
        raise incomplete(folder, TypeError("no mapping"))
    arrays = read_space(folder, entry)
    try:
        space, limit = PictureSpace(**arrays), float(entry["limit"])
        pixels, components = FRAME_SIZE[0] * FRAME_SIZE[1], len(space.spread)
        shapes = [space.mean.shape, space.axes.shape, space.spread.shape, space.noise.shape]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise incomplete(folder, error) from None
    if shapes != [(pixels,), (components, pixels), (components,), (1,)] or not limit > 0:
        raise incomplete(folder, ValueError("shapes"))
    return ScanSpace(space, limit)


VIEWS_FILE = "views.safetensors"

REASONS = {
    "frontal": "",
    "lateral": "looks like a lateral or oblique view",
    "other": "does not look like a whole, upright frontal chest X-ray",
}
"""What each class of the network means for an answer, in the order of its outputs."""

SMALL_BATCH = 256


def shrunk(squares: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Squares (n, s, s) as the network sees them: (n, side, side)."""
    import cv2

    small = [cv2.resize(np.asarray(s), (side, side), interpolation=cv2.INTER_AREA) for s in squares]
    return np.stack(small).astype(np.uint8) if small else np.zeros((0, side, side), np.uint8)


@dataclass(frozen=True, eq=False)
class Views:
    """The network and its limit."""

    network: nn.Module  # logits of `REASONS`
    side: int  # of the squares it sees, in pixels
    # for ``lateral`` and ``other``, the least probability of frontal as a share of frontal and that class
    limits: Mapping[str, float]

    def probability(self, squares: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(n, 3) of squares (n, s, s), in the order of `REASONS`; each row adds up to 1."""
        import torch

        small, found = shrunk(squares, self.side), [np.zeros((0, len(REASONS)))]
        device = next(self.network.parameters()).device
        with torch.inference_mode():
            for start in range(0, len(small), SMALL_BATCH):
                grey = torch.from_numpy(small[start : start + SMALL_BATCH, None]).to(device).float() / 255
                found.append(self.network(grey).double().softmax(dim=1).cpu().numpy())
        return np.concatenate(found)

    def frontal(self, probability: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Against each other class, the share of frontal in both: (n,) of probabilities (n, 3)."""
        return {
            name: probability[:, 0] / np.maximum(probability[:, 0] + probability[:, place], 1e-300)
            for place, name in enumerate(REASONS)
            if place
        }

    def reason(self, probability: NDArray[np.float64]) -> str:
        """Why a picture with probabilities (3,) is not frontal; empty when it is."""
        below = [n for n, share in self.frontal(probability[None]).items() if share[0] < self.limits[n]]
        return REASONS[max(below, key=lambda name: probability[list(REASONS).index(name)])] if below else ""


def read_views(folder: Path, entry: Mapping[str, Any]) -> Views:
    """What a card's entry ``views`` names; its file's sum was compared when the folder was loaded.

    Raises:
        ModelError: another file or other classes than this version knows, tensors that do not fit, no usable limit.
    """
    from pneumoscope.models.weights import load_network

    try:
        side, limits = int(entry["side"]), {name: float(entry["limits"][name]) for name in ("lateral", "other")}
        usable = entry["file"] == VIEWS_FILE and list(entry["classes"]) == list(REASONS) and side >= 16
        usable = usable and all(0 < limit < 1 for limit in limits.values())
    except (KeyError, TypeError, ValueError):
        usable = False
    if not usable:
        raise ModelError(
            "the card's entry views is not one that this version reads; copy the model folder again", path=folder
        )
    return Views(load_network(folder, VIEWS_FILE, entry.get("architecture", {})), side, limits)
