"""`import pneumoscope as ps`: the few calls most users need; heavy libraries are imported when one is made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pneumoscope.errors import InputError
from pneumoscope.progress import Progress, silent

if TYPE_CHECKING:
    from pneumoscope.cases.followup import Comparison
    from pneumoscope.inference.radiographs import Answer
    from pneumoscope.inference.segmenter import Segmentation
    from pneumoscope.metrics.folders import Evaluation
    from pneumoscope.recipes.schema import Experiment
    from pneumoscope.recipes.volumes import VolumeExperiment
    from pneumoscope.recipes.xray import XrayExperiment
    from pneumoscope.severity.measure import Severity
    from pneumoscope.study.base import StudyResult
    from pneumoscope.volume import Mask, Radiograph, Volume


def read_scan(path: str | Path, *, series: str | None = None) -> Volume:
    """Read one chest CT: NIfTI, NRRD, MetaImage, or a DICOM file, folder or zip.

    Args:
        path: the file or folder.
        series: of a DICOM study with several CT series ``best``, which None means (by written rules: chest, lung
            kernel, thin slices; a finding says what was left and why), its number, or its UID.

    Returns:
        The scan in Hounsfield units, axes (i, j, k) turned to RAS+, with its findings.

    Raises:
        ReadError: it must not be read as a chest CT; the message has a code, the file and a remedy.
    """
    from pneumoscope.io import read_volume

    return read_volume(path, series=series)


def segment(
    scan: str | Path | Volume,
    *,
    model: str | Path | Sequence[str | Path] = "infiltrate",
    lungs: str | Path | Mask | None = None,
    threshold: float | None = None,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    engine: str = "auto",
    mirror: bool | None = None,
    uncertainty: bool = False,
    series: str | None = None,
    progress: Progress = silent,
) -> Segmentation:
    """Lungs and infiltrates of one scan, on exactly its grid.

    Args:
        scan: a path that `read_scan` takes, or a volume.
        model: a shipped model's name or a model folder; of several the answers are averaged.
        lungs: a lung mask made elsewhere; in a file without label names 1 = right, 2 = left. None lets the model find
            the lungs.
        threshold: cuts a lung mask of probabilities; one of labels is left as it is.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: auto takes bf16 where the hardware has it, else fp32.
        engine: auto, torch, onnxruntime or openvino; the result's `engines` name what computed.
        mirror: also show the scan mirrored left to right and average; None does as the model's card says.
        uncertainty: also make `entropy` and `variance` of the result, how unsure the networks are.
        series: which DICOM series of a path, as for `read_scan`.
        progress: called as the work advances.

    Raises:
        InputError: the scan, the mask or the model cannot be used.
    """
    from pneumoscope.inference.segmenter import segment_volume

    volume = _volume(scan, series)
    given = None if lungs is None else _lungs(lungs, volume, threshold)
    return segment_volume(
        volume,
        model=model,
        lungs=given,
        device=device,
        precision=precision,
        engine=engine,
        mirror=mirror,
        uncertainty=uncertainty,
        progress=progress,
    )


def quantify(
    scan: str | Path | Volume,
    lungs: str | Path | Mask,
    infiltrate: str | Path | Mask,
    *,
    lobes: str | Path | Mask | None = None,
    threshold: float | None = None,
    series: str | None = None,
) -> Severity:
    """How much of the lungs is affected, from masks on the scan's grid.

    In a lung file without label names, 1 and 2 are taken as right and left, and 1 alone as lung of no side.
    Millilitres and shares per lung, zone and in all, densities, lesions and where they lie, and named states such as
    ``no_lung_found``; a share is None, never 0, when there is no lung to divide by. With `lobes`, five lobes by
    name or in lungmask's order, also the CT severity score of 0 to 25. Masks of
    probabilities in files are cut at the `threshold`; those of labels are left as they are.
    `series` says which DICOM series of a path is measured, as for `read_scan`.

    Raises:
        GeometryError: a mask lies on another grid than the scan.
    """
    from pneumoscope.severity.assess import assess

    volume = _volume(scan, series)
    lobe_mask = None if lobes is None else _mask(lobes, volume)
    return assess(volume, _lungs(lungs, volume, threshold), _mask(infiltrate, volume, threshold), lobes=lobe_mask)


def compare(
    baseline: str | Path, followup: str | Path, *more: str | Path, out: str | Path | None = None, **options: Any
) -> Comparison:
    """What became of one patient's infiltrates: new, resolved, persistent, per lung and zone.

    Args:
        baseline: a case folder of `segment` or `quantify`, or a scan (then `out` is needed: it is segmented first).
        followup: a later date, likewise.
        more: further dates.
        out: a folder to write masks and report into; None writes nothing.
        options: passed on to `pneumoscope.cases.followup.compare_cases`.

    Raises:
        InputError: the scans cannot be laid over each other; the message says which measure failed.
    """
    from pneumoscope.cases.followup import compare_cases

    return compare_cases([baseline, followup, *more], out, **options)


def classify(
    images: str | Path | Radiograph | Sequence[str | Path | Radiograph],
    *,
    model: str | Path = "xray",
    device: str = "auto",
) -> tuple[Answer, ...]:
    """Class probabilities of frontal chest X-rays, or why there are none.

    Args:
        images: a PNG, JPEG, TIFF or DICOM file, a radiograph, or several; one answer for each, in their order. All are
            in memory at once: `pneumoscope.cases.xray.classify_radiographs` takes folders of any size.
        model: a shipped model's name or a model folder.
        device: auto, cpu, cuda, cuda:N or mps.

    Raises:
        ReadError: a picture cannot be read.
        ModelError: the model cannot be used.
    """
    from pneumoscope.inference.radiographs import RadiographClassifier, classify_pictures
    from pneumoscope.io.formats.radiograph import read_radiograph
    from pneumoscope.volume import Radiograph

    given = [images] if isinstance(images, (str, Path, Radiograph)) else images
    classifier = RadiographClassifier(model, device=device)
    least = classifier.least_side
    pictures = [i if isinstance(i, Radiograph) else read_radiograph(i, least_side=least) for i in given]
    return tuple(classify_pictures(pictures, classifier))


def evaluate(
    prediction: str | Path,
    reference: str | Path,
    *,
    structure: Literal["infiltrate", "lungs"] = "infiltrate",
    spacing_mm: Sequence[float] | None = None,
    surface_tolerance_mm: float | None = None,
    threshold: float | None = None,
) -> Evaluation:
    """Score masks against masks: two files, or two folders matched by case name.

    Returns:
        A row per case and label, what could not be scored, and means with 95 % bootstrap intervals;
        `Evaluation.write` puts them into a folder.

    Raises:
        InputError: nothing to compare.
    """
    from pneumoscope.metrics.folders import score_folders

    return score_folders(
        prediction,
        reference,
        structure=structure,
        spacing_mm=spacing_mm,
        surface_tolerance_mm=surface_tolerance_mm,
        threshold=threshold,
    )


def run_study(
    recipe: str | Experiment | VolumeExperiment | XrayExperiment,
    *,
    out: str | Path,
    settings: Sequence[str] = (),
    seed: int | None = None,
    seeds: int | None = None,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    **options: Any,
) -> StudyResult:
    """Run a recipe: train the stages, score each on every test set, report.

    Args:
        recipe: a name of `pneumoscope study list`, or an experiment.
        out: the study folder to write.
        settings: changes as ``key=value``, as for ``--set``.
        seed: of everything drawn at random; None leaves those of the recipe.
        seeds: trainings of a study of radiographs, each with its own draw and split.
        precision: of trainings; auto leaves that of the recipe.
        options: fields of `pneumoscope.study.base.StudyOptions`: data, synthetic, resume, overwrite, device, jobs,
            lungs, accept_if_forgetting_below, progress.

    Raises:
        InputError: no such recipe or key, a value out of bounds, a folder that is not the data set, neither data nor
            `synthetic`, or an option of another kind of study.
        RunError: a training failed, or a model was refused by `accept_if_forgetting_below`.
    """
    from pneumoscope.recipes.registry import build_any
    from pneumoscope.study import engine

    experiment = build_any(recipe, settings, seed=seed, seeds=seeds, precision=precision)
    result = engine.run_study(experiment, out, **options)
    result.require_accepted()
    return result


def compare_studies(runs: Sequence[str | Path], *, out: str | Path, overwrite: bool = False) -> dict[str, Any]:
    """Compare study folders: what each strategy gains on the new set against what it loses on the old ones.

    Args:
        runs: study folders of one kind; transfer studies of one strategy with other seeds are one row.
        out: the folder to write: comparison.csv, comparison.json, a picture and report.html.
        overwrite: write over a comparison that lies there.

    Returns:
        What stands in comparison.json: ``rows``, ``sentence`` and what was compared.

    Raises:
        InputError: no study, one that is not scored, studies of other sets, or one given twice.
    """
    from pneumoscope.study.analysis import comparison

    return comparison.compare_studies(runs, out, overwrite=overwrite)


def _volume(scan: str | Path | Volume, series: str | None) -> Volume:
    if isinstance(scan, (str, Path)):
        return read_scan(scan, series=series)
    if series is not None:
        raise InputError("a series can be chosen when a path is given, not of a volume that is read already")
    return scan


def _mask(mask: str | Path | Mask, scan: Volume, threshold: float | None = None) -> Mask:
    from pneumoscope.io.read import read_mask_or_probability

    return read_mask_or_probability(mask, threshold, scan=scan.grid) if isinstance(mask, (str, Path)) else mask


def _lungs(mask: str | Path | Mask, scan: Volume, threshold: float | None = None) -> Mask:
    from pneumoscope.io import read_lungs
    from pneumoscope.io.read import read_mask_or_probability
    from pneumoscope.severity.sides import with_house_labels

    if isinstance(mask, (str, Path)):
        mask = read_mask_or_probability(mask, threshold, read_lungs, scan=scan.grid)
    return with_house_labels(mask)
