"""Model folders: `model.safetensors` and `card.json` with its SHA-256, written whole, checked before loading.

No pickle is ever loaded. A flipped byte loads silently in every tensor format, so the sum is compared first.

Also weights that others published, from a file that the user has: nothing is fetched. torchvision writes the first
eight hex digits of a file's SHA-256 into its name, which is what is checked; a file with another sum is loaded when its
tensors fit, with a note that it is not the published one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pneumoscope.errors import InputError, ModelError
from pneumoscope.io.files import sha256, write_bytes
from pneumoscope.models.cards import FORMAT, read_card, verify, write_card
from pneumoscope.models.classifiers import ChestCNN, ChestCNNConfig, ResNet50, ResNetConfig
from pneumoscope.models.r3d18_unet import R3D18UNet, R3D18UNetConfig
from pneumoscope.models.unet import UNet, UNet3D, UNet3DConfig, UNetConfig

WEIGHTS_FILE = "model.safetensors"

ARCHITECTURES: Mapping[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "unet": (UNetConfig, UNet),
    "unet3d": (UNet3DConfig, UNet3D),
    "r3d18_unet": (R3D18UNetConfig, R3D18UNet),
    "chest_cnn": (ChestCNNConfig, ChestCNN),
    "resnet50": (ResNetConfig, ResNet50),
}
"""Name in a card -> configuration and network."""


@dataclass(frozen=True)
class LoadReport:
    """What happened to each tensor when weights were carried into a network."""

    loaded: tuple[str, ...]  # names taken over
    missing: tuple[str, ...]  # names the network has and the source has not; they keep their fresh values
    unused: tuple[str, ...]  # names only the source has
    # name -> (shape in the source, shape in the network); they keep their fresh values
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    @property
    def complete(self) -> bool:
        """Whether the network is the source, tensor for tensor."""
        return not (self.missing or self.unused or self.mismatched)

    def sentence(self) -> str:
        """One line for logs and cards."""
        parts = [f"{len(self.loaded)} tensors loaded"]
        parts += [f"{len(self.missing)} left fresh: {', '.join(self.missing)}"] if self.missing else []
        parts += [f"{len(self.unused)} of the source unused: {', '.join(self.unused)}"] if self.unused else []
        parts += [f"{name} has shape {a} in the source, {b} here" for name, (a, b) in self.mismatched.items()]
        return "; ".join(parts)


def load_into(model: nn.Module, source: dict[str, Tensor]) -> LoadReport:
    """Copy every tensor of `source` that fits by name and shape; the report names all others with both shapes."""
    report = _fit(model.state_dict(), source)
    model.load_state_dict({name: source[name] for name in report.loaded}, strict=False)
    return report


def _fit(own: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> LoadReport:
    """Which tensors of `source` a network with the tensors `own` takes."""
    mismatched = {
        name: (tuple(source[name].shape), tuple(own[name].shape))
        for name in own
        if name in source and source[name].shape != own[name].shape
    }
    loaded = tuple(name for name in own if name in source and name not in mismatched)
    missing = tuple(name for name in own if name not in source)
    return LoadReport(loaded, missing, tuple(name for name in source if name not in own), mismatched)


def read_tensors(source: Path | bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of its bytes.

    Raises:
        ModelError: damaged, with the file's name where there is one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load, load_file

    try:
        return load(source) if isinstance(source, bytes) else load_file(source)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError) as problem:
        reason = f"{type(problem).__name__}: {problem}"
        raise ModelError(
            f"is not a complete safetensors file ({reason[:200]}); copy it again",
            path=source if isinstance(source, Path) else None,
        ) from problem


def save_model(
    folder: str | Path, model: nn.Module, card: dict[str, Any] | None = None, *, half: bool = False
) -> dict[str, Any]:
    """Write weights and card into `folder`; the same weights and card give the same bytes.

    Args:
        folder: made when absent.
        model: a network with a `config` (see `ARCHITECTURES`).
        card: free entries such as data, licence, numbers, limits; `architecture`, `sha256` and sizes are filled in.
        half: store floating tensors as float16 (half the size; loaded back as float32).

    Returns:
        The card as written.
    """
    from safetensors.torch import save

    folder = Path(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if half:
        tensors = {n: t.half() if t.is_floating_point() else t for n, t in tensors.items()}
    write_bytes(folder / WEIGHTS_FILE, save(tensors))
    kind = next((name for name, (_, cls) in ARCHITECTURES.items() if type(model) is cls), None)
    if kind is None:
        raise ModelError(f"cannot save a {type(model).__name__}; known architectures: {', '.join(ARCHITECTURES)}")
    full = {
        "format": FORMAT,
        "architecture": {"name": kind, **asdict(model.config)},  # type: ignore[call-overload]
        "parameters": sum(p.numel() for p in model.parameters()),
        **{name: value for name, value in (card or {}).items() if name not in ("format", "architecture")},
        "weights": {
            "file": WEIGHTS_FILE,
            "bytes": (folder / WEIGHTS_FILE).stat().st_size,
            "sha256": sha256(folder / WEIGHTS_FILE),
        },
    }
    return write_card(folder, full)


def load_model(folder: str | Path) -> tuple[Any, dict[str, Any]]:
    """The network of a model folder, in eval mode, and its card.

    Raises:
        ModelError: no such folder, unreadable card, newer format, wrong SHA-256, or tensors that do not fit.
    """
    folder = Path(folder)
    card = read_card(folder)
    check = verify(folder)
    if not check.ok:
        raise ModelError(check.sentence(), path=folder)
    if Path(check.file).suffix != ".safetensors":
        raise ModelError(
            f"holds {check.file}, an export for other programs; give the model it was made of", path=folder
        )
    return load_network(folder, check.file, card["architecture"]), card


def load_network(folder: Path, file: str, architecture: Any) -> Any:
    """A network in eval mode from a file of a model folder whose sum was compared (`load_model`).

    Raises:
        ModelError: unknown architecture, tensors that do not fit it or are not finite.
    """
    state = {n: t.float() if t.is_floating_point() else t for n, t in read_tensors(folder / file).items()}
    with torch.device("meta"):  # shapes alone: a card cannot ask for more memory than its weights have
        blank = _build(architecture, folder).state_dict()
    report = _fit(blank, state)
    if not report.complete:
        raise ModelError(f"the weights do not fit the card's architecture: {report.sentence()[:500]}", path=folder)
    model = _build(architecture, folder)
    model.load_state_dict(state)
    if not all(bool(torch.isfinite(t).all()) for t in state.values()):
        raise ModelError("the weights hold NaN or infinite values; train or copy the model again", path=folder)
    return model.eval()


def _build(architecture: dict[str, Any], folder: Path) -> Any:
    """A network with fresh weights from the card's `architecture`."""
    fields = dict(architecture)
    name = fields.pop("name", None)
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ModelError(
            f"the card names the architecture {name!r}; known are {', '.join(ARCHITECTURES)}; update pneumoscope",
            path=folder,
        )
    config_class, model_class = ARCHITECTURES[name]
    try:
        return model_class(config_class(**fields))
    except (InputError, TypeError, ValueError, RuntimeError, OverflowError) as problem:
        raise ModelError(f"the card's architecture is not a {name}: {str(problem)[:200]}", path=folder) from problem


@dataclass(frozen=True)
class Published:
    """Files under which an architecture's weights were published."""

    files: Mapping[str, str]  # name -> first hex digits of its SHA-256
    home: str  # where to get them
    licence: str  # as far as it is stated
    head: tuple[str, ...]  # tensors of the classifier, which another task leaves behind


PUBLISHED: Mapping[str, Published] = {
    "resnet50": Published(
        {"resnet50-0676ba61.pth": "0676ba61", "resnet50-11ad3fa6.pth": "11ad3fa6", "resnet50-19c8e357.pth": "19c8e357"},
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
    """Where carried weights came from."""

    file: str
    sha256: str  # of its bytes
    published: str | None  # the published file it is by its sum; None when it is another
    report: LoadReport  # which tensors were taken

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
