"""Weights that others published, from a file the user has: nothing is fetched, nothing is silently random.

torchvision writes the first eight hex digits of a file's SHA-256 into its name, which is what is checked; a file with
another sum is loaded when its tensors fit, and is said to be not the published one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pneumoscope.errors import ModelError
from pneumoscope.io.files import sha256
from pneumoscope.models.weights import LoadReport, load_into, read_tensors


@dataclass(frozen=True)
class Published:
    """Files under which an architecture's weights were published.

    Attributes:
        files: name -> first hex digits of its SHA-256.
        home: where to get them.
        licence: as far as it is stated.
        head: tensors of the classifier, which another task leaves behind.
    """

    files: Mapping[str, str]
    home: str
    licence: str
    head: tuple[str, ...]


PUBLISHED: Mapping[str, Published] = {
    "resnet50": Published(
        {
            "resnet50-0676ba61.pth": "0676ba61",
            "resnet50-11ad3fa6.pth": "11ad3fa6",
            "resnet50-19c8e357.pth": "19c8e357",
        },
        "https://download.pytorch.org/models/",
        "BSD-3-Clause (torchvision); trained on ImageNet, whose terms are for research",
        ("fc.weight", "fc.bias"),
    ),
    "r3d_18": Published(
        {"r3d_18-b3b3357e.pth": "b3b3357e"},
        "https://download.pytorch.org/models/",
        "BSD-3-Clause (torchvision); trained on Kinetics-400",
        ("fc.weight", "fc.bias"),
    ),
}


@dataclass(frozen=True)
class Origin:
    """Where carried weights came from.

    Attributes:
        file: its name.
        sha256: of its bytes.
        published: the published file it is by its sum; None when it is another.
        report: which tensors were taken.
    """

    file: str
    sha256: str
    published: str | None
    report: LoadReport

    def sentence(self) -> str:
        """One line for logs and cards."""
        what = f"the published {self.published}" if self.published else f"{self.file}, which is no published file"
        return f"weights of {what} (SHA-256 {self.sha256[:12]}): {self.report.sentence()}"


def carry_published(model: nn.Module, name: str, path: str | Path) -> Origin:
    """Copy the weights of a file into a network; its classifier keeps fresh values where the classes differ.

    Args:
        model: the network, changed in place.
        name: key of `PUBLISHED`.
        path: a ``.pth`` (loaded with ``weights_only``: no code in it is run) or ``.safetensors`` file.

    Raises:
        ModelError: no such file, no tensors in it, or tensors that are not those of the architecture.
    """
    known = PUBLISHED[name]
    file = Path(path)
    if not file.is_file():
        raise ModelError(
            f"there is no file with the weights of {name}; fetch one of {', '.join(known.files)} from {known.home}",
            path=file,
        )
    digest = sha256(file)
    state = _tensors(file)
    report = load_into(model, state)
    excused = (*known.head, *(n for n in report.missing if n.endswith("num_batches_tracked")))  # old files lack these
    not_head = [n for n in (*report.missing, *report.mismatched) if n not in excused]
    if not_head:
        raise ModelError(f"does not hold {name}: {report.sentence()[:300]}", path=file)
    published = next((f for f, start in known.files.items() if digest.startswith(start)), None)
    return Origin(file.name, digest, published, report)


def _tensors(file: Path) -> dict[str, Tensor]:
    """Name -> tensor of a state dict, prefixes of wrappers taken off."""
    if file.suffix == ".safetensors":
        state = read_tensors(file)
    else:
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle raises nearly everything for damaged or foreign files
            raise ModelError(f"is not a weights file ({type(error).__name__}); fetch it again", path=file) from None
        if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
            loaded = loaded["state_dict"]
        state = {k: v for k, v in loaded.items() if isinstance(v, Tensor)} if isinstance(loaded, dict) else {}
    if not state:
        raise ModelError("holds no tensors; fetch it again", path=file)
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state
