"""What networks of an X-ray study are trained and asked with: settings, the frozen body's features, answers, time."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from pneumoscope.jobs.stamp import content_of_arrays, stamp

if TYPE_CHECKING:
    from torch import nn

    from pneumoscope.training.tasks import PictureSource

_ASK = 32
"""Pictures asked about at a time."""


def head_of(model: nn.Module) -> nn.Module:
    """The dense layer of a network, its dropout before it, as a network of pooled features (n, f, 1, 1).

    The layer is the network's own: training it here trains it there.
    """
    from torch import nn

    dense = model.head if hasattr(model, "head") else model.fc
    dropout = model.dropout if hasattr(model, "dropout") else nn.Identity()
    return nn.Sequential(nn.Flatten(), cast("nn.Module", dropout), cast("nn.Module", dense))


class FeatureSource:
    """Pooled features of a picture source, for the frozen body's dense layer."""

    def __init__(self, features: NDArray[np.float32], source: PictureSource) -> None:
        self.features, self.source = features, source

    @classmethod
    def of(cls, model: nn.Module, source: PictureSource, device: str) -> FeatureSource:
        """Compute them once, in eval mode."""
        import torch

        from pneumoscope.training.devices import pick_device

        place = pick_device(device)
        model.to(place).eval()
        found = []
        with torch.inference_mode():
            for start in range(0, len(source), _ASK):
                rows = np.arange(start, min(start + _ASK, len(source)))
                maps = cast(Callable[..., Any], model.features)(source.batch(rows, None).x.to(place))
                found.append(maps.mean(dim=(2, 3)).float().cpu().numpy())
        return cls(np.concatenate(found), source)

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, indices: NDArray[np.int64], rng: np.random.Generator | None) -> Any:
        """As of the pictures, with x (n, f, 1, 1)."""
        import torch

        from pneumoscope.training.data import Batch

        x = torch.from_numpy(self.features[indices][:, :, None, None])
        y = torch.from_numpy(self.source.labels[indices].astype(np.float32))
        return Batch(x, y, tuple(self.source.names[int(i)] for i in indices))

    @cached_property
    def content(self) -> str:
        """See `BatchSource.content`: of the pictures, and of what the body makes of them."""
        return stamp("features", revision=1, pictures=self.source.content, values=content_of_arrays(self.features))


def resnet_frozen(model: Any, last_layers: int) -> tuple[str, ...]:
    """Modules of a ResNet-50 that stay as they are when its last layers are trained.

    A layer is a convolution or the dense one, see `ResNet50.weighted_layers`; its normalisation goes with it, and the
    shortcut of a block with the block's first convolution.
    """
    layers = model.weighted_layers()
    trained = set(layers[-last_layers:])
    frozen = []
    for name in layers:
        if name in trained:
            continue
        frozen += [name, name.replace("conv", "bn")]
        if name.endswith(".conv1"):
            frozen.append(f"{name.removesuffix('conv1')}downsample")
    present = {name for name, _ in model.named_modules()}
    return tuple(name for name in frozen if name in present)


def ask(model: nn.Module, made: Any, where: NDArray[np.int64], *, device: str = "auto") -> NDArray[np.float64]:
    """Probabilities (n, classes) of pictures, in fp32."""
    import torch

    from pneumoscope.training.devices import pick_device

    place = pick_device(device)
    model.to(place).eval()
    found = []
    with torch.inference_mode():
        for start in range(0, len(where), _ASK):
            pixels = np.asarray(made.pixels[where[start : start + _ASK]], np.float32)[:, None] / np.float32(255)
            logits = model(torch.from_numpy(pixels).to(place)).double()
            found.append(torch.softmax(logits, dim=1).cpu().numpy())
    return np.concatenate(found)


def time_pictures(
    model: nn.Module, made: Any, where: NDArray[np.int64], n: int, *, device: str = "auto"
) -> dict[str, Any]:
    """Median and quartiles of the time to classify one picture alone, in ms, after three to warm up."""
    import time

    spent = []
    for i in [*where[:3], *np.resize(where, n)]:
        began = time.perf_counter()
        ask(model, made, np.array([i]), device=device)
        spent.append(1000 * (time.perf_counter() - began))
    low, middle, high = np.percentile(spent[3:] if len(spent) > 3 else spent, (25, 50, 75))
    return {"ms_per_image": float(middle), "ms_low": float(low), "ms_high": float(high), "pictures": n}
