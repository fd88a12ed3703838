"""Radiographs through the view classifier and the classification network: batches, calibrated probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.radiographs import PictureRecipe
from pneumoscope.errors import Finding, InputError, ModelError
from pneumoscope.inference.familiar import Familiar, read_familiar
from pneumoscope.metrics.calibration import softmax_at
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
        scores: ``distance``, ``upright``, ``features`` of `inference.familiar`; empty when not compared. With a view
            classifier ``frontal``, the probability of being a frontal film, as well.
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
    """The network with each normalisation folded into the convolution before it, channels last in memory.

    The same function in eval mode, up to rounding, in less than half the time on a processor.
    """
    import torch
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for module in network.modules():
        children = dict(module.named_children())
        names = list(children)
        if isinstance(module, nn.Sequential):
            pairs = list(pairwise(names))
        else:
            pairs = [(name, name.replace("conv", "bn")) for name in names if name.startswith("conv")]
        for first, second in pairs:
            convolution, norm = children[first], children.get(second)
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, first, fuse_conv_bn_eval(convolution, norm))
                setattr(module, second, nn.Identity())
    return network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


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


FILE = "views.safetensors"

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
        usable = entry["file"] == FILE and list(entry["classes"]) == list(REASONS) and side >= 16
        usable = usable and all(0 < limit < 1 for limit in limits.values())
    except (KeyError, TypeError, ValueError):
        usable = False
    if not usable:
        raise ModelError(
            "the card's entry views is not one that this version reads; copy the model folder again", path=folder
        )
    return Views(load_network(folder, FILE, entry.get("architecture", {})), side, limits)
