"""Whether a network of radiographs may be asked about a picture: a frontal chest, like those it learnt from.

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
Decision 0017 tells what was tried and left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import InputError, ModelError
from pneumoscope.io.files import sha256, write_bytes

FILE = "familiar.safetensors"
SIDE, COMPONENTS = 24, 40
"""Of the shrunken picture, and how many principal components are kept."""

SHRINK = 0.01
"""Share of an even covariance mixed into that of the features, so that it can be inverted."""

LEAST_CONTRAST = 8.0
"""Grey levels (of 255): the deviation below which a shrunken picture is not stretched any further."""

TURNS = (
    "turned by 90 degrees",
    "upside down",
    "turned by 270 degrees",
    "mirrored top to bottom",
    "black and white exchanged",
)
"""What question 2 tries, by name."""

FAR = 1.5
"""Times its limit: a distance above it makes ``none of these`` of a ``cannot say``; neither names a class."""

BOTH_SHARE = 3
"""A CT slice is often within both limits, near to each: few chests are, so the sum may refuse more of them."""

MIN_PICTURES, MIN_OF_A_SOURCE = 20, 10


@dataclass(frozen=True)
class Limits:
    """Where answers stop.

    Attributes:
        distance: of question 1; the largest that is answered.
        upright: of question 2: least ratio of the nearest turned distance and the own one; at least 1.
        features: of question 3; the largest that is answered.
        both: largest sum of distance and features, each as a share of its own limit; 2 asks nothing more.
    """

    distance: float
    upright: float
    features: float
    both: float = 2.0


@dataclass(frozen=True, eq=False)
class Scores:
    """What was measured of n pictures.

    Attributes:
        distance: (n,) mean squared distance per pixel in units of the training spread; about 1 for training pictures.
        upright: (n,) see `Limits`.
        turn: (n,) which of `TURNS` is nearest.
        features: (n,) squared Mahalanobis distance of the features per feature.
    """

    distance: NDArray[np.float64]
    upright: NDArray[np.float64]
    turn: NDArray[np.intp]
    features: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PictureSpace:
    """Principal components of training pictures of d pixels.

    Attributes:
        mean: (d,) of the training pictures.
        axes: (k, d) principal components.
        spread: (k,) variances along them.
        noise: (1,) variance along each of the other directions.
    """

    mean: NDArray[np.float32]
    axes: NDArray[np.float32]
    spread: NDArray[np.float32]
    noise: NDArray[np.float32]

    @classmethod
    def fit(cls, pictures: NDArray[np.float32], components: int) -> PictureSpace:
        """Of pictures (n, ...); at most n / 2 components are kept."""
        flat = pictures.reshape(len(pictures), -1)
        mean = flat.mean(axis=0)
        _, singular, axes = np.linalg.svd(flat - mean, full_matrices=False)
        variances = singular.astype(np.float64) ** 2 / len(flat)
        kept = min(components, len(flat) // 2)
        noise = max(float(variances[kept:].sum()) / (flat.shape[1] - kept), 1e-4)
        return PictureSpace(
            mean.astype(np.float32),
            axes[:kept].astype(np.float32),
            np.maximum(variances[:kept], noise).astype(np.float32),
            np.array([noise], np.float32),
        )

    def distances(self, pictures: NDArray[np.float32]) -> NDArray[np.float64]:
        """(n,) mean squared distance per pixel in units of the training spread; about 1 for training pictures."""
        off = pictures.reshape(len(pictures), -1).astype(np.float64) - self.mean
        along = off @ self.axes.T.astype(np.float64)
        rest = np.maximum((off**2).sum(axis=1) - (along**2).sum(axis=1), 0)
        return np.asarray(((along**2 / self.spread).sum(axis=1) + rest / float(self.noise[0])) / off.shape[1])


@dataclass(frozen=True, eq=False)
class Familiar(PictureSpace):
    """What frontal chests and training features look like; the space is that of the shrunken training pictures.

    Attributes:
        centres: (classes, f) mean features of each class.
        precision: (f, f) inverse of the shrunken covariance that the classes share.
        limits: see `Limits`.
    """

    centres: NDArray[np.float32]
    precision: NDArray[np.float32]
    limits: Limits

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


def fit_familiar(
    train: tuple[NDArray[np.uint8], NDArray[np.floating], NDArray[np.integer]],
    validation: tuple[NDArray[np.uint8], NDArray[np.floating]],
    *,
    refused: float = 0.01,
    sources: Sequence[str] | None = None,
) -> Familiar:
    """Learn from training pictures, and set each limit so that it refuses the share `refused` of validation pictures.

    Args:
        train: pictures (n, side, side), features (n, f), class numbers (n,).
        validation: pictures and features of other patients. Test pictures and pictures of other kinds have no part.
        refused: share; the limit on both refuses `BOTH_SHARE` times as many, most of them the same ones.
        sources: of each validation picture: no source of `MIN_OF_A_SOURCE` or more passes one of the three limits more
            often than `refused`, however few its pictures are beside the others'. The limit on both is of all together.

    Raises:
        InputError: fewer than `MIN_PICTURES` of either.
    """
    squares, features, labels = train
    if min(len(squares), len(validation[0])) < MIN_PICTURES:
        raise InputError(
            f"what is familiar is learnt from at least {MIN_PICTURES} training and validation pictures, got "
            f"{len(squares)} and {len(validation[0])}"
        )
    space = PictureSpace.fit(shrunken(squares), COMPONENTS)
    centres, precision = _classes(np.asarray(features, np.float64), np.asarray(labels))
    unlimited = Limits(np.inf, 0.0, np.inf)
    found = Familiar(
        **vars(space), centres=centres.astype(np.float32), precision=precision.astype(np.float32), limits=unlimited
    )
    scores = found.score(*validation)
    each = [
        Limits(
            float(np.quantile(scores.distance[rows], 1 - refused)),
            float(np.quantile(scores.upright[rows], refused)),
            float(np.quantile(scores.features[rows], 1 - refused)),
        )
        for rows in _rows_by_source(len(validation[0]), sources)
    ]
    limits = Limits(
        max(limit.distance for limit in each),
        max(1.0, min(limit.upright for limit in each)),
        max(limit.features for limit in each),
    )
    together = scores.distance / limits.distance + scores.features / limits.features
    both = min(2.0, float(np.quantile(together, 1 - BOTH_SHARE * refused)))
    return Familiar(**{**vars(found), "limits": replace(limits, both=both)})


def _rows_by_source(n: int, sources: Sequence[str] | None) -> list[NDArray[np.intp]]:
    """All rows, and those of each source that has enough of them."""
    if sources is not None and len(sources) != n:
        raise InputError(f"{n} validation pictures and {len(sources)} sources; give one source per picture")
    named = np.asarray([] if sources is None else sources, dtype=np.str_)
    own = [np.flatnonzero(named == name) for name in np.unique(named)]
    return [np.arange(n), *(rows for rows in own if len(rows) >= MIN_OF_A_SOURCE)]


def _classes(
    features: NDArray[np.float64], labels: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean of each class that occurs, and the inverse covariance around them."""
    names = np.unique(labels)
    centres = np.stack([features[labels == name].mean(axis=0) for name in names])
    rest = features - centres[np.searchsorted(names, labels)]
    covariance = rest.T @ rest / len(rest)
    even = max(float(np.trace(covariance)) / len(covariance), 1e-12)
    return centres, np.linalg.inv((1 - SHRINK) * covariance + SHRINK * even * np.eye(len(covariance)))


def write_familiar(folder: str | Path, familiar: Familiar) -> dict[str, Any]:
    """Write `FILE` into a model folder and give the card's entry ``familiar``."""
    return {**write_space(folder, familiar), "limits": asdict(familiar.limits)}


def write_space(folder: str | Path, space: PictureSpace) -> dict[str, Any]:
    """Write the arrays into `FILE` of a model folder; its name and SHA-256, for the card."""
    from safetensors.numpy import save

    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f.name: getattr(space, f.name) for f in fields(space)}
    kept = {name: np.ascontiguousarray(values) for name, values in arrays.items() if isinstance(values, np.ndarray)}
    write_bytes(path, save(kept))
    return {"file": FILE, "sha256": sha256(path)}


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
