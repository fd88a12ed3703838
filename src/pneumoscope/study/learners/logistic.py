"""The baselines: multinomial logistic regressions on thumbnails and corners, in NumPy and SciPy.

A network that hardly beats them has not shown that it sees disease. The penalty is chosen by the validation loss; the
same picture rows, splits and classes are used as for the networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.datasets.radiographs import PictureRecipe, corners, pictures_content, thumbnails
from pneumoscope.errors import InputError
from pneumoscope.io.files import atomic_path, sha256
from pneumoscope.jobs.stamp import mark_done, read_done, stamp
from pneumoscope.study.learners.base import Learner, start_stage
from pneumoscope.study.xray_data import ImageCache
from pneumoscope.study.xray_repeat import AS_PAPER, Mitigation, Repeat, all_mitigations, table, views

Numbers = NDArray[np.floating[Any]]

THUMBNAILS, CORNERS, NO_LUNGS = "thumbnails", "corners", "no lungs"
"""What the regressions are shown: the small picture, its four corners, the small picture with the lungs cut out."""

FILE = "regressions.npz"


@dataclass(frozen=True, eq=False)
class Logistic:
    """A fitted regression."""

    weights: NDArray[np.float64]  # (features, classes), of standardised features
    bias: NDArray[np.float64]  # (classes,)
    # mean, deviation: of the training features (features,)
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    penalty: float  # the L2 weight it was fitted with

    def probability(self, x: Numbers) -> NDArray[np.float64]:
        """(n, classes) of features (n, features)."""
        logits = (np.asarray(x, np.float64) - self.mean) / self.deviation @ self.weights + self.bias
        return np.exp(_log_softmax(logits))


def fit_logistic(x: Numbers, y: NDArray[np.int64], n_classes: int, penalty: float) -> Logistic:
    """Minimise the mean cross-entropy plus penalty / 2 times the squared weights (the bias is free).

    Args:
        x: (n, features); standardised within, features that never change are left at 0.
        y: (n,) class numbers from 0.

    Raises:
        InputError: no rows, or numbers of rows and classes that do not fit.
    """
    from scipy.optimize import minimize

    x = np.asarray(x, np.float64)
    if x.ndim != 2 or len(x) != len(y) or not len(x) or y.min() < 0 or y.max() >= n_classes:
        raise InputError(f"a regression needs rows and their classes below {n_classes}, got {x.shape} and {len(y)}")
    mean, spread = x.mean(axis=0), x.std(axis=0)
    deviation = np.where(spread > 1e-9, spread, 1.0)
    standard = (x - mean) / deviation
    target = np.eye(n_classes)[y]

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights, bias = _unpack(flat, x.shape[1], n_classes)
        logp = _log_softmax(standard @ weights + bias)
        gap = (np.exp(logp) - target) / len(x)
        value = -float((target * logp).sum()) / len(x) + penalty / 2 * float((weights**2).sum())
        return value, np.concatenate([(standard.T @ gap + penalty * weights).ravel(), gap.sum(axis=0)])

    start = np.zeros((x.shape[1] + 1) * n_classes)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500})
    weights, bias = _unpack(found.x, x.shape[1], n_classes)
    return Logistic(weights, bias, mean, deviation, penalty)


def choose_logistic(
    train: tuple[Numbers, NDArray[np.int64]],
    val: tuple[Numbers, NDArray[np.int64]],
    n_classes: int,
    penalties: Sequence[float],
) -> Logistic:
    """The fit on `train` with the lowest cross-entropy on `val`; the strongest penalty where `val` is empty."""
    if not penalties:
        raise InputError("give at least one penalty to choose from")
    if not len(val[1]):
        return fit_logistic(*train, n_classes, max(penalties))
    fits = [fit_logistic(*train, n_classes, penalty) for penalty in sorted(penalties, reverse=True)]
    losses = [_cross_entropy(fit.probability(val[0]), val[1]) for fit in fits]
    return fits[int(np.argmin(losses))]


def _cross_entropy(probability: NDArray[np.float64], y: NDArray[np.int64]) -> float:
    return float(-np.log(np.maximum(probability[np.arange(len(y)), y], 1e-300)).mean())


def _unpack(
    flat: NDArray[np.float64], n_features: int, n_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    cut = n_features * n_classes
    return flat[:cut].reshape(n_features, n_classes), flat[cut:]


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    out: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return out


class Shown:
    """Numbers of pictures under a recipe, computed once per recipe."""

    def __init__(self, repeat: Repeat, supply: ImageCache) -> None:
        self.repeat, self.supply = repeat, supply
        self._held: dict[tuple[PictureRecipe, str], tuple[NDArray[np.float32], NDArray[np.int64]]] = {}

    def of(self, recipe: PictureRecipe, rows: NDArray[np.int64], kind: str = THUMBNAILS) -> NDArray[np.float32]:
        """(n, features) of the pool's rows."""
        key = recipe, kind
        if key not in self._held:
            held = self.supply.few
            made, where = self.supply.get(recipe, held)
            honest = self.repeat.experiment.honest
            pixels = made.pixels[where]
            if kind == CORNERS:
                found = corners(pixels, recipe.corner_pixels, honest.corner_thumbnail)
            else:
                found = thumbnails(pixels, honest.thumbnail)
            place = np.full(len(self.repeat.pool.cases), -1, np.int64)
            place[held] = np.arange(len(held))
            self._held[key] = found, place
        found, place = self._held[key]
        where = place[rows]
        assert (where >= 0).all(), "a picture was asked for that the study does not use"
        return found[where]


@dataclass(frozen=True)
class Baseline:
    """One regression: what it is shown, under which mitigation, with which source left out ("" for none)."""

    kind: str
    arm: Mitigation
    without: str = ""

    def numbers(self, shown: Shown, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, features) of the pool's rows."""
        cut = self.kind == NO_LUNGS
        recipe = views(shown.repeat.experiment)["lungs cut out"] if cut else self.arm.recipe
        return shown.of(recipe, rows, CORNERS if self.kind == CORNERS else THUMBNAILS)


@dataclass(frozen=True)
class BaselineStage:
    """All regressions of one repeat."""

    repeat: Repeat

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"baselines_seed{self.repeat.number}"

    @property
    def baselines(self) -> list[Baseline]:
        """With each source of COVID-19 held out where the others give enough to train on and to stop by."""
        repeat, arms = self.repeat, all_mitigations(self.repeat.experiment)
        kept = [arm for arm in arms.values() if not (arm.adults and repeat.adults is None)]
        plain = [Baseline(kind, arms[AS_PAPER]) for kind in (CORNERS, NO_LUNGS)]
        return plain + [Baseline(THUMBNAILS, arm, out) for arm in kept for out in ("", *repeat.held_out)]


@dataclass(frozen=True, eq=False)
class Regressions:
    """The fitted regressions of a repeat; attributes as of `base.Made`, and `fits` in the order of the stage."""

    name: str
    folder: Path
    sha256: str
    trained_now: bool
    stage: BaselineStage
    shown: Shown
    fits: Sequence[Logistic]

    @property
    def tests(self) -> Any:
        """What predictions depend on beside the numbers: the pictures of all tests."""
        return _content(self.stage.repeat)

    def predict(self, device: str) -> tuple[pd.DataFrame, dict[str, Any]]:
        """What every regression says about every test."""
        repeat, frames = self.stage.repeat, []
        for one, fit in zip(self.stage.baselines, self.fits, strict=True):
            asked = repeat.tests(one.without).items()
            found = {name: fit.probability(one.numbers(self.shown, rows)) for name, (rows, _) in asked}
            frames.append(table(repeat, one.kind, one.arm.name, one.without, found, repeat.one.classes))
        return pd.concat(frames, ignore_index=True), {}


class RegressionLearner(Learner):
    """Fits the baselines of a repeat."""

    def make(self, stage: BaselineStage) -> Regressions:
        """See `Learner`."""
        study, repeat, own = self.study, stage.repeat, self.study.stage_folder(stage.name)
        settings = asdict(repeat.experiment)
        shaped = {part: settings[part] for part in ("data", "pictures", "split", "honest")}
        parts = {
            "settings": {**shaped, "repeat": repeat.number, "seed": repeat.seed},
            "training_data": _content(repeat),
        }
        wanted, shown = stamp("xray baselines", revision=2, **parts), Shown(repeat, study.supply)
        fits, now = (_kept(own, wanted) if study.resume else None), False
        if fits is None:
            start_stage(own, wanted, parts, resume=study.resume, progress=study.progress)
            fits, now = [], True
            for done, one in enumerate(stage.baselines, start=1):
                taught = repeat.training_set(one.arm, one.without)
                train, val = (one.numbers(shown, rows) for rows in (taught.train, taught.val))
                sides = (train, taught.train_labels), (val, taught.val_labels)
                fits.append(choose_logistic(*sides, len(repeat.one.classes), repeat.experiment.honest.penalties))
                study.progress("baselines", done, len(stage.baselines))
            with atomic_path(own / FILE) as temporary, temporary.open("wb") as stream:
                np.savez(
                    stream, **{f"{n}.{key}": value for n, fit in enumerate(fits) for key, value in vars(fit).items()}
                )
            mark_done(own, wanted, sha256=sha256(own / FILE))
        return Regressions(stage.name, own, read_done(own)["sha256"], now, stage, shown, fits)


def _content(repeat: Repeat) -> str:
    """Hex SHA-256 over the pictures that train and test."""
    parts = [part.rows for part in (repeat.zero, repeat.one, repeat.adults) if part is not None]
    rows = np.unique(np.concatenate([*parts, repeat.sick]))
    return pictures_content(repeat.pool.at(rows), all_mitigations(repeat.experiment)[AS_PAPER].recipe)


def _kept(own: Path, wanted: str) -> list[Logistic] | None:
    """The regressions in the folder; None where they are of another stamp, or not whole."""
    done = read_done(own)
    try:
        if done.get("stamp") != wanted or sha256(own / FILE) != done.get("sha256"):
            return None
        with np.load(own / FILE, allow_pickle=False) as held:
            count = len(held.files) // len(Logistic.__dataclass_fields__)
            names = Logistic.__dataclass_fields__
            return [Logistic(**{name: held[f"{n}.{name}"] for name in names}) for n in range(count)]
    except (OSError, ValueError, KeyError):
        return None
