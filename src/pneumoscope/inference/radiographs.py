"""Radiographs through the classification network: batches, calibrated probabilities, and where the network looked.

Grad-CAM (Selvaraju et al. 2017, ICCV, equations 1 and 2) weights the last maps by the mean gradient of a class's logit;
for networks that average the last maps before one dense layer it is class activation mapping (Zhou et al. 2016) without
its negative part. Occlusion (Zeiler and Fergus 2014, ECCV, section 4.2) greys one patch after the other and notes how
much the class's probability drops: slower, but it asks the network itself and reads nothing of its inside.

A heat map shows what moved the network, not where disease is: maps of networks that learnt shortcuts look convincing
(DeGrave et al. 2021, Nature Machine Intelligence 3, 610).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.radiographs import LUNG_BOX, PictureRecipe
from pneumoscope.errors import Finding, InputError, ModelError
from pneumoscope.inference.engines import fold_norms
from pneumoscope.inference.out_of_distribution import Familiar, Views, read_familiar, read_views
from pneumoscope.metrics.classification import softmax_at
from pneumoscope.models.cards import find_model, read_card
from pneumoscope.objects import Tabled, bars

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from pneumoscope.volume import Radiograph

DEFAULT_MODEL = "xray"
NONE_OF_THESE, CANNOT_SAY = "none of these", "cannot say"

LATERAL = "IN-XRY-090"  # The reader's code of a lateral view
UNDECIDED = 0.5  # A class is named only when it is more likely than all others together

BATCH = 32

OVERSAMPLED = 2  # Pixels of a picture along a pixel of the square, at least, after it was shrunk while it was read


@dataclass(frozen=True, repr=False)
class Answer(Tabled):
    """What is said of one picture.

    Attributes:
        prediction: a class; ``none of these`` for what is no upright frontal chest X-ray; ``cannot say``.
        reason: why no class is named; empty otherwise.
        probability: of each class, at the card's temperature, adding up to 1; means nothing where no class is named.
        familiar: whether the picture was compared with the training pictures at all.
        scores: ``distance``, ``upright``, ``features`` of `inference.out_of_distribution`; empty when not compared.
            With a view classifier ``frontal``, the probability of being a frontal film, as well.
    """

    prediction: str
    reason: str
    probability: dict[str, float]
    familiar: bool
    scores: dict[str, float]

    def __repr__(self) -> str:
        return f"Answer({', '.join(f'{name} {value}' for name, value in self._numbers().items())})"

    def _numbers(self) -> dict[str, str]:
        shares = {name: f"{value:.2f}" for name, value in self.probability.items()}
        return {"prediction": self.prediction, **({"reason": self.reason} if self.reason else shares)}

    def _draw(self, axes: Sequence[Any]) -> None:
        bars(axes[0], self.probability, "probability" if self.answered else "no class is named")
        axes[0].set_xlim(0, 1)

    def to_frame(self) -> pd.DataFrame:
        """One row: ``prediction,reason`` and ``p_CLASS`` of each class."""
        import pandas as pd

        row: dict[str, Any] = {"prediction": self.prediction, "reason": self.reason}
        return pd.DataFrame([row | {f"p_{name}": value for name, value in self.probability.items()}])

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @property
    def answered(self) -> bool:
        """Whether a class is named."""
        return not self.reason

    @property
    def leading(self) -> str:
        """The class with the highest probability, named or not."""
        return max(self.probability, key=lambda name: self.probability[name])


def radiograph_card(model: str | Path) -> tuple[Path, dict[str, Any]]:
    """The folder and the card of a model for radiographs, whose weights are not loaded.

    Raises:
        ModelError: unknown, damaged, or a model for something else.
    """
    folder = find_model(model)
    card = read_card(folder)
    if not isinstance(card.get("classes"), list):
        raise ModelError(
            "is not a radiograph model: its card has no classes; see 'pneumoscope model list'", path=folder
        )  # fmt: skip
    return folder, card


class RadiographClassifier:
    """A model folder, loaded once.

    Computes in fp32 on every device: the limits and the temperature in the card were found so.

    Args:
        model: a shipped name or a model folder.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        ModelError: unknown, damaged, or a model for something else.
    """

    def __init__(self, model: str | Path = DEFAULT_MODEL, *, device: str = "auto") -> None:
        from pneumoscope.models.weights import load_model
        from pneumoscope.training.devices import pick_device

        self.folder, self.card = radiograph_card(model)
        self.device = pick_device(device)
        network = load_model(self.folder)[0]
        if not hasattr(network, "classify"):
            raise ModelError("is not a radiograph model; see 'pneumoscope model list'", path=self.folder)
        self.network = _quickened(network).to(self.device)
        self.classes = tuple(str(name) for name in self.card["classes"])
        if network.config.classes != len(self.classes):
            raise ModelError(
                f"the network has {network.config.classes} classes, its card names {len(self.classes)}; "
                "copy the model folder again",
                path=self.folder,
            )
        self.recipe = _recipe(self.card, self.folder)
        self.temperature = _temperature(self.card, self.folder)
        entry = self.card.get("familiar")
        self.familiar: Familiar | None = None if not entry else read_familiar(self.folder, entry)
        entry = self.card.get("views")
        self.views: Views | None = None if not entry else read_views(self.folder, entry)
        if self.views is not None:
            self.views = replace(self.views, network=_quickened(self.views.network).to(self.device))

    @property
    def least_side(self) -> int:
        """Pixels along the shorter side of a picture above which more of them change next to nothing in its square."""
        top, bottom, left, right = self.recipe.lung_box if self.recipe.view == "lung_box" else (0.0, 1.0, 0.0, 1.0)
        shown = (1 - 2 * self.recipe.border) * min(bottom - top, right - left)
        return math.ceil(OVERSAMPLED * self.recipe.side / shown)

    def square(self, picture: Radiograph) -> NDArray[np.uint8]:
        """The picture as the network sees it (side, side): the same steps as in training."""
        return self.recipe.make(picture.pixels)

    def raw(self, squares: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits (n, classes) and pooled features (n, f) of squares (n, side, side)."""
        import torch

        logits, features = [], []
        with torch.inference_mode():
            for start in range(0, len(squares), BATCH):
                maps = self.network.features(self.tensor(squares[start : start + BATCH]))
                logits.append(self.network.classify(maps).float().cpu().numpy())
                features.append(maps.mean(dim=(2, 3)).float().cpu().numpy())
        if not logits:
            return np.zeros((0, len(self.classes)), np.float32), np.zeros((0, 0), np.float32)
        return np.concatenate(logits), np.concatenate(features)

    def tensor(self, squares: NDArray[np.uint8]) -> Any:
        """(n, 1, side, side) in [0, 1] on the device."""
        import torch

        grey = np.ascontiguousarray(squares, np.float32)[:, None] / np.float32(255)
        return torch.from_numpy(grey).to(self.device)

    def answer(self, squares: NDArray[np.uint8]) -> list[Answer]:
        """One answer per square (n, side, side); none for none."""
        if not len(squares):
            return []
        logits, features = self.raw(squares)
        if not np.isfinite(logits).all():
            raise InputError("the network gave a value that is not finite; check the model with 'pneumoscope model'")
        probability = softmax_at(logits, self.temperature)
        scores = None if self.familiar is None else self.familiar.score(squares, features)
        seen = None if self.views is None else self.views.probability(squares)
        answers = []
        for row, values in enumerate(probability):
            said = {name: float(v) for name, v in zip(self.classes, values, strict=True)}
            leading = self.classes[int(values.argmax())]
            prediction, reason, measured = leading, "", {}
            if scores is not None and self.familiar is not None:
                measured = {n: float(getattr(scores, n)[row]) for n in ("distance", "upright", "features")}
                verdict, reason = self.familiar.reason(scores, row)
                prediction = verdict or leading
            if self.views is not None and seen is not None:
                measured["frontal"] = float(seen[row, 0])
                view = self.views.reason(seen[row])
                if view and prediction != NONE_OF_THESE:  # that it is turned or inverted says more than the view
                    prediction, reason = NONE_OF_THESE, view
            if not reason and values.max() <= UNDECIDED:
                prediction, reason = CANNOT_SAY, f"no class is more likely than not ({leading} {values.max():.2f})"
            answers.append(Answer(prediction, reason, said, scores is not None, measured))
        return answers


def _quickened(network: nn.Module) -> Any:
    """The network with its normalisations folded, channels last in memory: less than half the time on a processor."""
    import torch

    return fold_norms(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def with_findings_applied(answer: Answer, findings: Sequence[Finding]) -> Answer:
    """The answer, withdrawn where the reader found that the picture is no frontal view."""
    if any(finding.code == LATERAL for finding in findings):
        return replace(answer, prediction=NONE_OF_THESE, reason="is a lateral view by its header")
    return answer


def _recipe(card: dict[str, Any], folder: Path) -> PictureRecipe:
    try:
        return PictureRecipe(**card["input"]["recipe"])
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise ModelError(
            f"the card's input.recipe does not say how a picture becomes the network's input ({str(error)[:200]}); "
            "copy the model folder again",
            path=folder,
        ) from None


def _temperature(card: dict[str, Any], folder: Path) -> float:
    value = card.get("temperature", 1.0)
    if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ModelError(f"the card's temperature is {value!r}, expected a positive number", path=folder)
    return float(value)


def classify_pictures(
    pictures: Sequence[Radiograph], model: str | Path | RadiographClassifier = DEFAULT_MODEL, *, device: str = "auto"
) -> list[Answer]:
    """Answers for pictures in memory; see `RadiographClassifier`, which may be given itself, for what is raised."""
    classifier = model if isinstance(model, RadiographClassifier) else RadiographClassifier(model, device=device)
    if not pictures:
        return []
    answers = classifier.answer(np.stack([classifier.square(p) for p in pictures]))
    return [with_findings_applied(answer, p.findings) for answer, p in zip(answers, pictures, strict=True)]


Method = Literal["grad-cam", "occlusion"]
METHODS: tuple[Method, ...] = ("grad-cam", "occlusion")

BAND_ROWS = 512
PATCH = 1 / 7  # Side of the grey patch as a share of the picture's; it moves by half of itself


def heat(
    classifier: RadiographClassifier, square: NDArray[np.uint8], wanted: str, method: Method = "grad-cam"
) -> NDArray[np.float32]:
    """What speaks for a class in a square (side, side): (side, side) in [0, 1], 1 at its highest.

    All zeros when nothing speaks for it.

    Raises:
        InputError: an unknown class or method.
    """
    if wanted not in classifier.classes:
        raise InputError(f"the model knows no class {wanted!r}; it knows {', '.join(classifier.classes)}")
    if method not in METHODS:
        raise InputError(f"no heat map is called {method!r}; expected {' or '.join(METHODS)}")
    number = classifier.classes.index(wanted)
    found = _grad_cam(classifier, square, number) if method == "grad-cam" else _occlusion(classifier, square, number)
    top = float(found.max())
    return (found / top if top > 1e-12 else np.zeros_like(found)).astype(np.float32)


def _grad_cam(classifier: RadiographClassifier, square: NDArray[np.uint8], number: int) -> NDArray[np.float32]:
    import torch
    from torch.nn import functional as F

    network = classifier.network
    with torch.no_grad():
        maps = network.features(classifier.tensor(square[None]))
    with torch.enable_grad():
        maps = maps.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(network.classify(maps)[0, number], maps)
    with torch.no_grad():
        weighted = (gradient.mean(dim=(2, 3), keepdim=True) * maps.detach()).sum(dim=1, keepdim=True).clamp(min=0)
        whole = F.interpolate(weighted, size=square.shape, mode="bilinear", align_corners=False)
    return np.asarray(whole[0, 0].float().cpu().numpy(), np.float32)


def _occlusion(classifier: RadiographClassifier, square: NDArray[np.uint8], number: int) -> NDArray[np.float32]:
    from pneumoscope.metrics.classification import softmax_at

    side = len(square)
    patch = max(2, round(side * PATCH))
    starts = sorted({*range(0, side - patch + 1, max(1, patch // 2)), side - patch})
    places = [(r, c) for r in starts for c in starts]
    grey = np.uint8(round(float(square.mean())))

    def probability(squares: NDArray[np.uint8]) -> NDArray[np.float64]:
        return softmax_at(classifier.raw(squares)[0], classifier.temperature)[:, number]

    whole = float(probability(square[None])[0])
    drop, seen = np.zeros((side, side)), np.zeros((side, side))
    step = 64
    for start in range(0, len(places), step):
        part = places[start : start + step]
        hidden = np.repeat(square[None], len(part), axis=0)
        for row, (r, c) in enumerate(part):
            hidden[row, r : r + patch, c : c + patch] = grey
        for (r, c), left in zip(part, probability(hidden), strict=True):
            drop[r : r + patch, c : c + patch] += max(0.0, whole - float(left))
            seen[r : r + patch, c : c + patch] += 1
    return (drop / seen).astype(np.float32)


def on_picture(map_: NDArray[np.float32], recipe: PictureRecipe, shape: tuple[int, int]) -> NDArray[np.float32]:
    """A map of the square (side, side) laid onto the picture (rows, columns): the way back of `PictureRecipe.make`.

    What the recipe cut away gets 0; what it padded is dropped.
    """
    import cv2

    out = np.zeros(shape, np.float32)
    rows, columns = _seen(recipe, shape)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    inner = map_
    if recipe.fit == "pad":
        scale = recipe.side / max(height, width)
        tall, wide = (min(recipe.side, max(1, round(n * scale))) for n in (height, width))
        top, left = (recipe.side - tall) // 2, (recipe.side - wide) // 2
        inner = map_[top : top + tall, left : left + wide]
    laid = cv2.resize(np.ascontiguousarray(inner), (width, height), interpolation=cv2.INTER_LINEAR)
    out[rows, columns] = np.clip(laid, 0, 1)
    return out


def _seen(recipe: PictureRecipe, shape: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the picture that the recipe shows."""
    rows, columns = slice(0, shape[0]), slice(0, shape[1])
    cuts = [(recipe.border, 1 - recipe.border, recipe.border, 1 - recipe.border)]
    if recipe.view == "lung_box":
        cuts.append(recipe.lung_box)
    for top, bottom, left, right in cuts:
        height, width = rows.stop - rows.start, columns.stop - columns.start
        low, high = round(top * height), round(bottom * height)
        first, last = round(left * width), round(right * width)
        if low < high and first < last:
            rows = slice(rows.start + low, rows.start + high)
            columns = slice(columns.start + first, columns.start + last)
    return rows, columns


def share_in_lung_box(
    map_: NDArray[np.floating], box: tuple[float, float, float, float] = LUNG_BOX
) -> tuple[float | None, float]:
    """Share of a picture's heat (rows, columns) inside the box, and the share of the picture that the box is.

    The box is one and the same for all pictures (`datasets.radiographs.LUNG_BOX`): no lung is segmented. Heat spread
    evenly has the second number as its share. The first is None without heat.
    """
    top, bottom, left, right = box
    rows, columns = map_.shape
    inside = slice(round(top * rows), round(bottom * rows)), slice(round(left * columns), round(right * columns))
    total = float(map_.sum(dtype=np.float64))
    share = float(map_[inside].sum(dtype=np.float64)) / total if total > 0 else None
    return share, map_[inside].size / map_.size


def overlay(pixels: NDArray[np.float32], map_: NDArray[np.float32], strength: float = 0.55) -> NDArray[np.uint8]:
    """The picture (rows, columns) with its heat in colour, (rows, columns, 3); where there is no heat it stays grey."""
    import cv2

    out = np.empty((*pixels.shape, 3), np.uint8)
    for start in range(0, len(pixels), BAND_ROWS):  # in bands: a large picture in float colours takes a gigabyte
        band = slice(start, start + BAND_ROWS)
        strong = np.clip(map_[band], 0, 1)
        colours = cv2.applyColorMap(np.rint(strong * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
        weight = (np.float32(strength) * np.sqrt(strong))[..., None]
        out[band] = np.rint(pixels[band, :, None] * 255 * (1 - weight) + colours * weight)
    return out
