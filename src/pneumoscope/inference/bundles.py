"""MONAI bundles through `monai.bundle`: ``bundle:FOLDER`` or ``bundle:FILE.zip``.

What is used of `configs/inference.json` (or .yaml) is the network, the preprocessing, the inferer and the
postprocessing without what saves files; the scan goes in as a NIfTI file, as with `monai.bundle run`. Expressions
(``$...``) are Python and need `--trust`; without it only networks, transforms and inferers of MONAI with plain values
are built.
"""

from __future__ import annotations

import pickle
import re
import shutil
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import GeometryError, InputError, ModelError, RunError
from pneumoscope.geometry import reorient_array
from pneumoscope.inference.external import Access, Network, quietly
from pneumoscope.inference.graphs import load_script
from pneumoscope.inference.volumes import to_bytes
from pneumoscope.models.export import is_installed
from pneumoscope.progress import Progress, silent
from pneumoscope.volume import RAS, Volume

CONFIGS = ("configs/inference.json", "configs/inference.yaml", "configs/inference.yml")
PARTS = ("preprocessing", "inferer", "postprocessing")
SAFE_HOME = re.compile(r"monai\.(networks|transforms|inferers)(\.\w+)*")
"""Where MONAI's networks, transforms and inferers are; `_target_` may name only these classes without `--trust`."""

IMPORTED_BY_NAME = ("reader", "writer", "merger_cls")
"""Arguments of MONAI's classes that it imports and calls when they are dotted names."""

FETCHES = re.compile(r"https?://|download|hf_hub|from_pretrained|load_from_mmar|from_ngc", re.IGNORECASE)
SAVES = ("SaveImage", "SaveImaged", "SaveImageD", "SaveImageDict")
MAX_UNPACKED_BYTES, MAX_FILES = 4 * 2**30, 10_000
LOADS_SCRIPT = re.compile(
    r"\$torch\.jit\.load\(@bundle_root \+ '/models/model\.ts'(, map_location=@device)?\)(\.eval\(\))?"
)
"""What our exports say of their network. It is recognised, not evaluated: TorchScript holds no Python."""

BARE = re.compile(r"[A-Z]\w*")
_REFERENCE = re.compile(r"[@%]([\w:#./-]+)")


def files_of(kind: str, path: str) -> list[Path]:
    """See `external.content_of`."""
    return [Path(path)]


def read(kind: str, path: str, access: Access) -> Bundle:
    """Open a MONAI bundle; see `external.open_external`."""
    if not is_installed("monai"):
        raise InputError("MONAI bundles need the package monai; run `pip install 'pneumoscope[monai]'`")
    if access.mirror:
        raise InputError("a bundle shows a scan as its own configuration says; leave --mirror out")
    place = Path(path)
    if not place.is_dir() and not zipfile.is_zipfile(place):
        raise ModelError("is no MONAI bundle; expected its folder, or a zip of it", path=place)
    return Bundle(place, access)


def _unpacked(place: Path, owner: object) -> Path:
    """The folder with ``configs``; of a zip in a temporary one that is removed with its `owner`."""
    if place.is_dir():
        root = place
    else:
        root = Path(tempfile.mkdtemp(prefix="pneumoscope-"))
        weakref.finalize(owner, shutil.rmtree, root, ignore_errors=True)
        with zipfile.ZipFile(place) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > MAX_UNPACKED_BYTES or len(members) > MAX_FILES:
                most = f"{MAX_UNPACKED_BYTES >> 30} GiB or {MAX_FILES} files"
                raise ModelError(f"unpacks to more than {most}; unpack it yourself", path=place)
            outside = next(
                (m.filename for m in members if Path(m.filename).is_absolute() or ".." in Path(m.filename).parts), None
            )
            if outside is not None:
                raise ModelError(f"holds a file that lies outside it ({outside[:80]}); do not use it", path=place)
            try:
                archive.extractall(root)
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as problem:
                raise ModelError(f"is a damaged zip ({problem}); copy it again", path=place) from problem
    found = [root, *sorted(p for p in root.iterdir() if p.is_dir())]
    inside = next((p for p in found if any((p / name).is_file() for name in CONFIGS)), None)
    if inside is None:
        raise ModelError(f"is no MONAI bundle; expected {CONFIGS[0]} in it", path=place)
    return inside


class Bundle(Network):
    """A bundle's own parts, run one after the other as its evaluator does."""

    def __init__(self, place: Path, access: Access) -> None:
        from pneumoscope.training.devices import pick_device

        self.path = place
        self.engine = f"monai {metadata.version('monai')}"
        self._device = pick_device(access.device)
        root = _unpacked(place, self)
        with quietly():
            from monai.bundle import ConfigParser

            parser = ConfigParser()
            try:
                parser.read_config(next(root / name for name in CONFIGS if (root / name).is_file()))
                if (root / "configs" / "metadata.json").is_file():
                    parser.read_meta(root / "configs" / "metadata.json")
                parser.resolve_macro_and_relative_ids()  # what stands in other files and above is checked too
            except Exception as problem:  # of JSON, YAML or MONAI
                raise ModelError(f"its configuration cannot be read: {_reason(problem)}", path=place) from problem
            config: dict[str, Any] = parser.config  # type: ignore[assignment]
            config |= {"bundle_root": str(root), "device": str(self._device)}
            self.labels = _labels(config.get("_meta_"))
            network = next((key for key in ("network_def", "network") if key in config), None)
            missing = [key for key in ("preprocessing", "inferer") if key not in config]
            if network is None or missing:
                what = ", ".join([*missing, *([] if network else ["network_def"])])
                raise ModelError(f"its inference configuration has no {what}; expected MONAI's usual names", path=place)
            for part in PARTS:
                _drop_savers(config.get(part))
            is_script = isinstance(config[network], str) and bool(LOADS_SCRIPT.fullmatch(config[network]))
            built = [*([] if is_script else [network]), *(part for part in PARTS if part in config)]
            self._check(config, built, access.trust)
            weights = None if is_script else self._weights(root, config[network])
            try:
                if is_script:
                    self._network: Any = load_script(root / "models" / "model.ts", self._device)
                else:
                    self._network = parser.get_parsed_content(network).to(self._device).eval()
                self._parts = {part: parser.get_parsed_content(part) for part in PARTS if part in config}
                assert all(callable(part) for part in self._parts.values()), "its parts are no transforms and inferer"
            except ModelError:
                raise
            except Exception as problem:  # whatever a configuration can name
                raise ModelError(f"cannot be built by {self.engine}: {_reason(problem)}", path=place) from problem
        if weights is not None:
            self._load(weights, access.trust)

    def _check(self, config: dict[str, Any], parts: Sequence[str], trust: bool) -> None:
        """Refuse what fetches, and without trust what runs Python or builds anything but parts of networks."""
        for text, key in _reached(config, parts):
            if FETCHES.search(text) or text == "pretrained=True":
                raise ModelError(f"needs the network ({text[:80]}); nothing is fetched here", path=self.path)
            if trust:
                continue
            if text.startswith("$"):
                raise ModelError(
                    f"its configuration runs Python ({text[:60]}); give --trust if you trust whoever made it",
                    path=self.path,
                )
            if (key == "_target_" and not _is_safe(text)) or (key in IMPORTED_BY_NAME and not BARE.fullmatch(text)):
                raise ModelError(
                    f"its configuration builds {text[:60]}, which is no network, transform or inferer of MONAI; give "
                    "--trust if you trust whoever made it",
                    path=self.path,
                )

    def _weights(self, root: Path, network: Any) -> Path | None:
        """The weights that bundles have in `models`; None where the network is a TorchScript file itself."""
        if isinstance(network, str) and "jit.load" in network and (root / "models" / "model.ts").is_file():
            return None
        named = [root / "models" / name for name in ("model.pt", "model.pth", "model.ckpt")]
        found = next((file for file in named if file.is_file()), None)
        if found is None:
            raise ModelError(
                "has no models/model.pt; download the whole bundle, nothing is fetched here", path=self.path
            )
        return found

    def _load(self, weights: Path, trust: bool) -> None:
        import torch

        try:
            state = torch.load(weights, map_location="cpu", weights_only=not trust)
        except pickle.UnpicklingError as problem:
            raise ModelError(
                "models/model.pt holds pickled Python objects, which run code when they are read; give --trust if you "
                "trust whoever made them",
                path=self.path,
            ) from problem
        except Exception as problem:  # a damaged pickle fails in any way
            raise ModelError("models/model.pt cannot be read; copy the bundle again", path=self.path) from problem
        for key in ("model", "state_dict", "network"):
            state = state[key] if isinstance(state, dict) and isinstance(state.get(key), dict) else state
        try:
            self._network.load_state_dict(state)
        except (RuntimeError, TypeError, AttributeError) as problem:
            raise ModelError(
                f"models/model.pt does not fit its network: {_reason(problem)}", path=self.path
            ) from problem

    def predict(
        self, volume: Volume, probable: Sequence[str], progress: Progress = silent
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """See `Network.predict`."""
        progress("windows", 0, 1)
        try:
            with quietly(), tempfile.TemporaryDirectory(prefix="pneumoscope-") as folder:
                found = self._run(volume, Path(folder))
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as problem:
            raise RunError(f"{self.engine} failed: {_reason(problem)}", path=self.path) from problem
        progress("windows", 1, 1)
        if found.shape[1:] != volume.native.shape:
            raise GeometryError(
                f"gave {list(found.shape[1:])} voxels for a scan of {list(volume.native.shape)}; its postprocessing "
                "lacks Invertd",
                path=self.path,
            )
        turned = reorient_array(np.moveaxis(found, 0, -1), *volume.native.reorientation(RAS))
        return self._labelled(np.moveaxis(turned, -1, 0), probable)

    def _run(self, volume: Volume, folder: Path) -> NDArray[np.float32]:
        """The bundle's prediction (c, i, j, k) in the order of the file."""
        import torch
        from monai.data import decollate_batch, list_data_collate

        from pneumoscope.io.write import write_image

        file = folder / "scan.nii.gz"
        write_image(volume.hu, volume.native, file)
        item = self._parts["preprocessing"]({"image": str(file)})
        batch = list_data_collate([item])
        with torch.inference_mode():
            batch["pred"] = self._parts["inferer"](batch["image"].to(self._device), self._network)
        item = decollate_batch(batch)[0]
        if "postprocessing" in self._parts:
            item = self._parts["postprocessing"](item)
        return np.asarray(item["pred"].float().cpu(), np.float32)

    def _labelled(
        self, found: NDArray[np.float32], probable: Sequence[str]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """A label map, probabilities of classes, or of one class or several that may lie in each other."""
        numbers = [value for name in probable for value in self.labels[name]]
        if not np.isfinite(found).all():
            raise RunError("gave values that are no numbers (NaN or infinite)", path=self.path)
        if len(found) == 1 and np.array_equal(found, np.rint(found)) and found.max() <= 255:
            return np.ascontiguousarray(found[0].astype(np.uint8)), None
        if found.min() < -1e-3 or found.max() > 1 + 1e-3:
            raise RunError("gave logits, expected labels or probabilities; its postprocessing lacks Activationsd",
                           path=self.path)  # fmt: skip
        if len(found) > 1 and np.allclose(found.sum(axis=0), 1, atol=1e-2):
            labels = found.argmax(axis=0).astype(np.uint8)
            return labels, to_bytes(found[numbers].sum(axis=0)) if numbers else None
        labels = np.zeros(found.shape[1:], np.uint8)
        for n, channel in enumerate(found, start=1):
            labels[channel >= 0.5] = n
        return labels, to_bytes(found[[n - 1 for n in numbers]].max(axis=0)) if numbers else None


def _labels(meta: Any) -> dict[str, tuple[int, ...]]:
    """Names of the output's channels in the bundle's metadata."""
    try:
        given = meta["network_data_format"]["outputs"]["pred"]["channel_def"]
        return {str(name): (int(number),) for number, name in given.items() if 0 < int(number) < 256}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {"label 1": (1,)}


def _drop_savers(item: Any) -> None:
    """Take transforms that write files out of a configuration, however deep they stand."""
    for value in item.values() if isinstance(item, dict) else item if isinstance(item, list) else ():
        _drop_savers(value)
    if isinstance(item, list):
        item[:] = [
            t for t in item
            if not (isinstance(t, dict) and str(t.get("_target_")).rpartition(".")[2] in SAVES)
        ]  # fmt: skip


def _reached(config: Mapping[str, Any], parts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every text that building these parts comes across, through references too, and the key that it stands under."""
    stack: list[tuple[Any, str]] = [(config[part], "") for part in parts]
    seen: set[str] = set()
    while stack:
        item, key = stack.pop()
        if isinstance(item, Mapping):
            stack += [(value, str(name)) for name, value in item.items()]
            if item.get("pretrained") is True:
                yield "pretrained=True", key
        elif isinstance(item, (list, tuple)):
            stack += [(value, key) for value in item]
        elif isinstance(item, str):
            yield item, key
            for reference in _REFERENCE.findall(item):
                name = re.split(r"::|#", reference)[0]
                if name in config and name not in seen:
                    seen.add(name)
                    stack.append((config[name], ""))


def _is_safe(target: str) -> bool:
    """Whether a ``_target_`` is a network, transform or inferer of MONAI: what the name leads to, not what it says."""
    from monai.bundle.config_item import ComponentLocator
    from monai.inferers import Inferer
    from monai.transforms import Transform
    from torch.nn import Module

    place, _, name = target.rpartition(".")
    homes = [place] if place else ComponentLocator().get_component_module_name(name) or ""
    for home in [homes] if isinstance(homes, str) else homes:
        if not SAFE_HOME.fullmatch(home):
            return False
        try:
            found = getattr(import_module(home), name, None)
        except ImportError:
            return False
        is_part = isinstance(found, type) and issubclass(found, (Module, Transform, Inferer))
        if not is_part or not SAFE_HOME.fullmatch(str(getattr(found, "__module__", ""))):
            return False
    return bool(homes)


def _reason(problem: BaseException) -> str:
    while problem.__cause__ is not None:
        problem = problem.__cause__
    return " ".join(str(problem).split())[:200] or type(problem).__name__
