"""Models of other programs, named KIND:PATH: a scan in, labels and a probability on exactly the scan's grid out.

Each kind has a module with `read`, which opens a model as a `Network`; here its labels get our meanings. Weights are
read without running code of theirs where the format allows; where it does not, `--trust` is asked for.
"""

from __future__ import annotations

import io
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.formats.label_names import MEANINGS, SYNONYMS, LabelMap, label_map, plain
from pneumoscope.datasets.public.covid19ctseg import with_sides
from pneumoscope.errors import DatasetError, Finding, ModelError
from pneumoscope.progress import Progress, silent
from pneumoscope.severity.regions import LOBES, lobe_of
from pneumoscope.volume import INFILTRATE_LABEL, INFILTRATE_LABELS, LUNG_LABEL, LUNG_LABELS, Mask, Volume, relabelled

KINDS: Mapping[str, str] = {
    "nnunet": "nnunet",
    "bundle": "bundles",
    "onnx": "graphs",
    "torchscript": "graphs",
    "lungmask": "lungmask",
    "totalsegmentator": "nnunet",
}
"""What may stand before the colon, and the module beside this one that reads it."""

UNMAPPED = "SEG-EXT-001"


@dataclass(frozen=True)
class Access:
    """How models are opened and run."""

    trust: bool = False  # read formats that can run code of whoever made them
    # device, precision: as for `pneumoscope.inference.segmenter.Segmenter`
    device: str = "auto"
    precision: str = "auto"
    mirror: bool | None = None  # also show the scan mirrored; None does as the model's own program does
    labels: tuple[str, ...] = ()  # ``NAME=MEANING`` or ``NUMBER=MEANING``, for labels not known here or meant otherwise


@contextmanager
def quietly() -> Iterator[None]:
    """Programs print to stdout, which is for results here, and warn of what is not for users."""
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Network(ABC):
    """A model of another program, loaded."""

    path: Path  # file or folder, for messages
    # the model's names -> values in its label map; a region has several. Background is left out.
    labels: Mapping[str, tuple[int, ...]]
    engine: str  # what computes it, e.g. ``nnunetv2 2.8.1``.
    mirrored = False

    @abstractmethod
    def predict(
        self, volume: Volume, probable: Sequence[str], progress: Progress = silent
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Labels of a scan, and the probability of what is named.

        Args:
            probable: names of `labels` whose joint probability is wanted; may be empty.
            progress: called per window where the program allows it.

        Returns:
            Labels (i, j, k) uint8, and 255 times the probability, or None for a model that gives labels only.

        Raises:
            PneumoscopeError: the model failed, or its result does not lie on the scan.
        """


@dataclass(frozen=True, eq=False)
class ExternalPrediction:
    """What a model says of a scan, in our labels."""

    # 1 = ground-glass, 2 = consolidation where the model tells them apart, else 1 = infiltrate; None for a model
    # without such a label
    infiltrate: Mask | None
    # (i, j, k) uint8, 255 times that of any infiltrate; None for a model that gives labels only
    probability: NDArray[np.uint8] | None
    # 1 = right, 2 = left, or 1 = lung where sides are not distinguished; None for a model without lungs
    lungs: Mask | None
    lobes: Mask | None  # by name; None for a model without lobes


@dataclass(frozen=True, eq=False)
class External:
    """A model and what its labels mean here."""

    name: str  # as it was given, without the folders above it
    network: Network  # the model
    labels: LabelMap  # its lungs and infiltrates; see `LabelMap`
    kinds: Mapping[int, str]  # what the labels of infiltrates are called; see `ExternalPrediction.infiltrate`
    lobes: Mapping[int, str]  # label number -> name of `LOBES`
    probable: tuple[str, ...]  # its names that are infiltrate
    findings: tuple[Finding, ...]  # labels without a meaning here

    @property
    def card(self) -> dict[str, Any]:
        """What reports say of it."""
        given = {name: list(values) for name, values in self.network.labels.items()}
        return {"title": self.name, "task": "external", "labels": given, "computed_by": self.network.engine}

    def predict(self, volume: Volume, progress: Progress = silent) -> ExternalPrediction:
        """Segment one scan; infiltrate that cuts holes into the model's own lungs is given to the nearer one.

        Raises:
            PneumoscopeError: as `Network.predict`.
        """
        values, probability = self.network.predict(volume, self.probable, progress)
        unknown = sorted(set(np.unique(values).tolist()) - {0} - {n for v in self.network.labels.values() for n in v})
        if unknown:
            raise ModelError(
                f"gave the labels {unknown[:8]}, but names only {_listed(self.network.labels)}", path=self.network.path
            )
        infiltrate = lungs = lobes = None
        if self.labels.infiltrate_labels:
            infiltrate = _relabelled(values, self.labels.infiltrate_labels, volume, self.kinds)
        if self.labels.lung_labels:
            names = LUNG_LABELS if self.labels.has_sides else LUNG_LABEL
            lungs = _relabelled(values, self.labels.lung_labels, volume, names)
            if infiltrate is not None and self.labels.has_sides:
                lungs, _ = with_sides(lungs, infiltrate)
        if self.lobes:
            numbers = {value: LOBES.index(name) + 1 for value, name in self.lobes.items()}
            lobes = _relabelled(values, numbers, volume, dict(enumerate(LOBES, start=1)))
        return ExternalPrediction(infiltrate, probability if infiltrate is not None else None, lungs, lobes)


def _relabelled(
    values: NDArray[np.uint8], numbers: Mapping[int, int], volume: Volume, names: Mapping[int, str]
) -> Mask:
    return Mask(relabelled(values, numbers), volume.grid, dict(names))


def split_kind(model: str | Path) -> tuple[str, str] | None:
    """Kind and path of ``KIND:PATH``; None for a shipped name or a model folder."""
    kind, colon, path = str(model).partition(":")
    return (kind, path) if colon and kind in KINDS else None


def is_external(model: str | Path) -> bool:
    """Whether a model is one of another program."""
    return split_kind(model) is not None


def open_external(model: str | Path, access: Access, *, task: str) -> External:
    """A model of another program, with meanings for its labels.

    Args:
        model: KIND:PATH.
        access: see there.
        task: ``infiltrate`` or ``lungs``, which it must have a label for.

    Raises:
        ModelError: no such model, damaged, not to be read without trust, or without a label for the task.
        InputError: its program is not installed.
    """
    kind, path = _required(model)
    module = import_module(f"pneumoscope.inference.{KINDS[kind]}")
    network: Network = module.read(kind, path, access)
    known, kinds, lobes, unmapped = _meanings(network, access.labels)
    wanted = known.infiltrate_labels if task == "infiltrate" else known.has_sides or None
    if not wanted:
        what = "infiltrate, ground-glass or consolidation" if task == "infiltrate" else "right lung and left lung"
        raise ModelError(
            f"has the labels {_listed(network.labels)}, none of which is known as {what}; say which is with "
            f"--label {next(iter(network.labels), 'NAME')}={'infiltrate' if task == 'infiltrate' else 'right lung'}",
            path=network.path,
        )
    probable = tuple(n for n, values in network.labels.items() if set(values) <= set(known.infiltrate_labels))
    note = f"labels of the model that mean nothing here and were left out: {', '.join(unmapped)}"
    findings = (Finding(UNMAPPED, note, "info"),) if unmapped else ()
    return External(f"{kind}:{Path(path).name}", network, known, kinds, lobes, probable, findings)


def files_of(model: str | Path) -> list[Path]:
    """The files that a model of another program is read from.

    Raises:
        ModelError: they are not there.
    """
    kind, path = _required(model)
    files: list[Path] = import_module(f"pneumoscope.inference.{KINDS[kind]}").files_of(kind, path)
    return files


def content_of(model: str | Path) -> str:
    """Hex SHA-256 over all of a model that shapes its results, for stamps; of one that is not there, of its name."""
    from pneumoscope.jobs.stamp import content_of_files, stamp
    from pneumoscope.models.cards import content_of_model

    if not is_external(model):
        return content_of_model(model)
    kind, path = _required(model)
    try:
        sums = content_of_files(files_of(model))
    except (ModelError, OSError):
        sums = path
    return stamp("external model", revision=1, program=kind, files=sums)


def _required(model: str | Path) -> tuple[str, str]:
    split = split_kind(model)
    if split is None or not split[1]:
        raise ModelError(
            f"{model} names no model of another program; expected KIND:PATH, KIND one of {', '.join(KINDS)}"
        )
    return split


def _listed(labels: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{name} ({'+'.join(map(str, values))})" for name, values in labels.items()) or "none"


def _meanings(network: Network, given: Sequence[str]) -> tuple[LabelMap, Mapping[int, str], dict[int, str], list[str]]:
    """Lungs and infiltrates, what these are called, lobes by number, and the names that have no meaning here.

    Raises:
        ModelError: `given` names a label that does not exist, one twice, or a meaning that is none.
    """
    by_name = {plain(name): name for name in network.labels}
    by_number = {str(values[0]): name for name, values in network.labels.items() if len(values) == 1}
    own: dict[str, str] = {}
    for pair in given:
        key, _, meaning = pair.rpartition("=")
        name = by_number.get(key.strip()) or by_name.get(plain(key))
        if name is None:
            raise ModelError(
                f"has no label {key.strip()!r} (--label {pair}); it has {_listed(network.labels)}", path=network.path
            )
        if meaning not in (*MEANINGS, *LOBES):
            expected = ", ".join((*MEANINGS, *LOBES))
            raise ModelError(f"--label {pair}: a label cannot mean {meaning!r}; expected one of {expected}")
        if own.get(name, meaning) != meaning:
            raise ModelError(f"--label {pair}: {name} was already said to mean {own[name]!r}; give each label once")
        own[name] = meaning
    lobes: dict[int, str] = {}
    meanings: dict[str, str] = {}
    for name, values in network.labels.items():
        lobe = own[name] if own.get(name) in LOBES else None if name in own else lobe_of(name)
        if lobe:
            lobes |= dict.fromkeys(values, lobe)
            meanings[name] = f"{lobe.partition('_')[0]} lung"
        elif name in own or plain(name) in SYNONYMS:
            meanings[name] = own.get(name) or SYNONYMS[plain(name)]
    unmapped = [f"{name} ({'+'.join(map(str, v))})" for name, v in network.labels.items() if name not in meanings]
    try:
        known = label_map({name: network.labels[name] for name in meanings}, meanings, network.path)
    except DatasetError as problem:
        raise ModelError(problem.message, path=network.path) from problem
    told_apart = 2 in known.infiltrate_labels.values() or "infiltrate" not in meanings.values()
    return known, INFILTRATE_LABELS if told_apart else INFILTRATE_LABEL, lobes, unmapped
