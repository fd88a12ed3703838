"""Made-up chests and a small network that tells a bright spot from none, with its card: seconds, not minutes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fit_familiar import fit_familiar, write_familiar
from pneumoscope.datasets.radiographs import PictureRecipe
from pneumoscope.inference.out_of_distribution import Limits
from pneumoscope.models.classifiers import ChestCNN, ChestCNNConfig
from pneumoscope.models.weights import save_model

SIDE = 32
CLASSES = ("normal", "bacterial")


def chest(rng, side=SIDE, spot=False, at=(0.55, 0.3), columns=None):
    """(side, columns) in [0, 1]: two dark lungs, a spine, shoulders, a bright belly; a spot in the right lung."""
    columns = columns or side
    r, c = np.mgrid[0:side, 0:columns]
    r, c = r / side + rng.normal(0, 0.01), c / columns + rng.normal(0, 0.01)
    grey = 0.55 + 0.25 * r
    for middle in (0.3, 0.7):
        grey -= 0.42 * np.exp(-(((c - middle) / 0.13) ** 4) - ((r - 0.45) / 0.3) ** 4)
    grey += 0.2 * np.exp(-(((c - 0.5) / 0.05) ** 2))
    grey[r < 0.1] -= 0.25 * rng.uniform(0.8, 1)
    if spot:
        grey += 0.6 * np.exp(-(((r - at[0]) ** 2 + (c - at[1]) ** 2) / 0.008))
    grey = grey * rng.uniform(0.85, 1.05) + rng.normal(0, 0.02, grey.shape)
    return np.clip(grey, 0, 1).astype(np.float32)


def chests(rng, n, recipe):
    labels = np.arange(n) % 2
    squares = np.stack([recipe.make(chest(rng, 64, spot=bool(label))) for label in labels])
    return squares, labels


def train(squares, labels, steps=90, features=(8, 16)):
    """A small network, taught for a second."""
    torch.manual_seed(0)
    net = ChestCNN(ChestCNNConfig(classes=2, features=features, dropout=0.0)).train()
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    x = torch.from_numpy(squares[:, None] / 255.0).float()
    y = torch.from_numpy(labels)
    for step in range(steps):
        rows = torch.from_numpy(np.random.default_rng(step).permutation(len(x))[:32])
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimiser.step()
    return net.eval()


def pooled(net, squares):
    with torch.inference_mode():
        return net.features(torch.from_numpy(squares[:, None] / 255.0).float()).mean(dim=(2, 3)).numpy()


def make_model(folder: Path, *, familiar: bool = True, **more: Any) -> Path:
    """A model folder for two classes; the second is a bright spot in the left half of the picture."""
    rng = np.random.default_rng(3)
    recipe = PictureRecipe(side=SIDE)
    squares, labels = chests(rng, 120, recipe)
    net = train(squares, labels)
    card = {"title": "spots", "classes": list(CLASSES), "input": {"recipe": vars(recipe)}, "temperature": 1.5} | more
    if familiar:
        others, _ = chests(rng, 80, recipe)
        known = fit_familiar((squares, pooled(net, squares), labels), (others, pooled(net, others)))
        limits = Limits(1.3 * known.limits.distance, known.limits.upright, 1.5 * known.limits.features)
        card["familiar"] = write_familiar(folder, replace(known, limits=limits))  # no test hangs on a chance refusal
    save_model(folder, net, card)
    return folder
