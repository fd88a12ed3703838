"""Where a network looked: Grad-CAM, and occlusion, which needs no gradients; both laid back onto the original picture.

Grad-CAM (Selvaraju et al. 2017, ICCV, equations 1 and 2) weights the last maps by the mean gradient of a class's logit;
for networks that average the last maps before one dense layer it is class activation mapping (Zhou et al. 2016) without
its negative part. Occlusion (Zeiler and Fergus 2014, ECCV, section 4.2) greys one patch after the other and notes how
much the class's probability drops: slower, but it asks the network itself and reads nothing of its inside.

A heat map shows what moved the network, not where disease is: maps of networks that learnt shortcuts look convincing
(DeGrave et al. 2021, Nature Machine Intelligence 3, 610).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.radiographs import LUNG_BOX, PictureRecipe
from pneumoscope.errors import InputError

if TYPE_CHECKING:
    from pneumoscope.inference.radiographs import RadiographClassifier

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
    from pneumoscope.metrics.calibration import softmax_at

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
