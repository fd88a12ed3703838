"""lungmask's networks for lungs and lobes, where lungmask is installed: ``lungmask:R231[@FILE]``.

Weights are read from local files only: FILE, or what lungmask itself downloaded earlier into torch's hub folder.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import InputError, ModelError
from pneumoscope.inference.external import Access, Network
from pneumoscope.models.export import is_installed
from pneumoscope.preprocess.slices import from_slices, to_slices
from pneumoscope.progress import Progress, silent
from pneumoscope.severity.regions import LUNGMASK_ORDER
from pneumoscope.volume import LUNG_LABELS, Volume

FILES: Mapping[str, str] = {
    "R231": "unet_r231-d5d2fc3d.pth",
    "R231CovidWeb": "unet_r231covid-0de78a7e.pth",
    "LTRCLobes": "unet_ltrclobes-3a07043d.pth",
}
"""lungmask's models and what their weights are called in torch's hub folder."""


def files_of(kind: str, path: str) -> list[Path]:
    """See `external.content_of`."""
    return [find_weights(path)]


def find_weights(spec: str) -> Path:
    """The weights of ``NAME[@FILE]``.

    Raises:
        ModelError: no such model, or its weights are not on this machine.
    """
    name, _, given = spec.partition("@")
    if name not in FILES:
        raise ModelError(f"lungmask has no model {name!r}; known are {', '.join(FILES)}")
    if given:
        file = Path(given)
    else:
        from torch.hub import get_dir

        file = Path(get_dir()) / "checkpoints" / FILES[name]
    if not file.is_file():
        raise ModelError(
            f"the weights of lungmask's {name} are not there, and nothing is fetched; run lungmask itself once, or "
            f"name the file with lungmask:{name}@FILE",
            path=file,
        )
    return file


def read(kind: str, path: str, access: Access) -> Lungmask:
    """Open a model of lungmask; see `external.open_external`."""
    weights = find_weights(path)
    if access.mirror:
        raise InputError("lungmask shows a scan one way only; leave --mirror out")
    if not is_installed("lungmask"):
        raise InputError("lungmask is not installed; run `pip install 'pneumoscope[lungmask]'`")
    return Lungmask(weights, access)


class Lungmask(Network):
    """lungmask's own inference and clean-up."""

    def __init__(self, weights: Path, access: Access) -> None:
        import warnings

        import torch

        from pneumoscope.training.devices import pick_device

        self.path = weights
        self.engine = f"lungmask {metadata.version('lungmask')}"
        on_cpu = pick_device(access.device).type == "cpu"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from lungmask import LMInferer

            try:
                torch.load(weights, map_location="cpu", weights_only=True)
                self._inferer: Any = LMInferer(modelpath=str(weights), force_cpu=on_cpu, tqdm_disable=True)
            except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, AttributeError, IndexError) as problem:
                raise ModelError("holds no weights of lungmask; fetch the file again", path=weights) from problem
        classes = int(next(reversed(self._inferer.model.state_dict().values())).shape[0])
        names = LUNGMASK_ORDER if classes > len(LUNG_LABELS) + 1 else LUNG_LABELS
        self.labels = {name: (number,) for number, name in names.items()}

    def predict(
        self, volume: Volume, probable: Sequence[str], progress: Progress = silent
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """See `Network.predict`."""
        progress("lungs", 0, 1)
        found = self._inferer.apply(np.ascontiguousarray(to_slices(volume.hu)))
        progress("lungs", 1, 1)
        return from_slices(np.asarray(found, np.uint8)), None
