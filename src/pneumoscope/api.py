"""`import pneumoscope as ps`: the few calls most users need; heavy libraries are imported when one is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, Unpack

from pneumoscope.errors import InputError, InputTypeError
from pneumoscope.options import made_of
from pneumoscope.progress import Progress, silent

if TYPE_CHECKING:
    import pandas as pd

    from pneumoscope.cases.audit import AuditResult
    from pneumoscope.cases.compare import Comparison
    from pneumoscope.cases.options import AuditKeywords, SegmentOptions
    from pneumoscope.datasets.convert import Converted
    from pneumoscope.inference.radiographs import Answer
    from pneumoscope.inference.segmenter import Segmentation
    from pneumoscope.metrics.folders import Evaluation
    from pneumoscope.metrics.options import EvaluateKeywords
    from pneumoscope.models.options import ModelKeywords
    from pneumoscope.plans.train import OwnResult
    from pneumoscope.preprocess.registration import RegistrationRules
    from pneumoscope.recipes.schema import Experiment
    from pneumoscope.recipes.volumes import VolumeExperiment
    from pneumoscope.recipes.xray import XrayExperiment
    from pneumoscope.severity.measure import Severity
    from pneumoscope.study.base import StudyResult
    from pneumoscope.study.options import StudyKeywords
    from pneumoscope.volume import Mask, Radiograph, Volume


def read_scan(scan: Any, *, series: str | None = None, case: str | None = None) -> Volume:
    """One chest CT.

    Args:
        scan: NIfTI, NRRD, MetaImage, or a DICOM file, folder or zip; or a nibabel, SimpleITK, MONAI or TorchIO image,
            or (array, affine), which are checked as files are. Ours is given back.
        series: of a DICOM study with several CT series ``best``, which None means (by written rules: chest, lung
            kernel, thin slices; a finding says what was left and why), its number, or its UID.
        case: its name in outputs; None takes the file's stem, for DICOM a name that hides the patient.

    Returns:
        The scan in Hounsfield units, axes (i, j, k) turned to RAS+, with its findings.

    Raises:
        ReadError: it must not be read as a chest CT; the message has a code, the file and a remedy.
        InputTypeError: a value of another type; the message says what is accepted.
    """
    from pneumoscope.io.read import read_volume, source_of
    from pneumoscope.volume import Volume

    if not isinstance(scan, Volume):
        return read_volume(source_of(scan, "the scan", Volume), series=series, case=case)
    if series is not None:
        raise InputError("a series can be chosen when a path is given, not of a volume that is read already")
    return scan


def read_mask(mask: Any, *, names: Mapping[int, str] | None = None, threshold: float | None = None) -> Mask:
    """One mask of labels.

    Args:
        mask: NIfTI, NRRD or MetaImage, or what `read_scan` takes of other libraries. Ours is given back.
        names: label numbers that are allowed and what they mean; None takes the names in the file.
        threshold: voxels above it become label 1, for masks of probabilities or grey levels.

    Raises:
        ReadError: it holds no whole labels from 0 to 255, or some that `names` lacks.
        InputTypeError: a value of another type; the message says what is accepted.
    """
    from pneumoscope.io.read import read_mask, source_of
    from pneumoscope.volume import Mask

    return mask if isinstance(mask, Mask) else read_mask(source_of(mask, "the mask", Mask), names, threshold=threshold)


def segment(
    scan: Any, *, model: str | Path | Sequence[str | Path] = "infiltrate", lungs: Any = None,
    threshold: float | None = None, uncertainty: bool = False, series: str | None = None, progress: Progress = silent,
    **options: Unpack[ModelKeywords],
) -> Segmentation:  # fmt: skip
    """Lungs and infiltrates of one scan, on exactly its grid; its `severity` and `save` measure and write them.

    Args:
        scan: what `read_scan` takes.
        model: a shipped model's name or a model folder; of several the answers are averaged.
        lungs: a lung mask made elsewhere, what `read_mask` takes; in one without label names 1 = right, 2 = left. None
            lets the model find the lungs.
        threshold: cuts a lung mask of probabilities; one of labels is left as it is. Refused without `lungs`.
        uncertainty: also make `entropy` and `variance` of the result, how unsure the networks are.
        series: which DICOM series of a path, as for `read_scan`.
        progress: called as the work advances.
        options: other fields of `pneumoscope.models.options.ModelOptions`.

    Raises:
        InputError: the scan, the mask or the model cannot be used.
    """
    from pneumoscope.inference.segmenter import segment_volume
    from pneumoscope.models.options import ModelOptions

    how = made_of(ModelOptions, {"model": model, **options})
    if threshold is not None and lungs is None:
        raise InputError("threshold cuts a lung mask and there is none; give lungs too, or leave threshold out")
    volume = read_scan(scan, series=series)
    given = None if lungs is None else _lungs(lungs, volume, threshold)
    return segment_volume(volume, how, given, uncertainty=uncertainty, progress=progress)


def quantify(
    scan: Any,
    lungs: Any,
    infiltrate: Any,
    *,
    lobes: Any = None,
    threshold: float | None = None,
    series: str | None = None,
) -> Severity:
    """How much of the lungs is affected, from masks on the scan's grid; takes what `read_scan` and `read_mask` take.

    In a lung mask without label names, 1 and 2 are taken as right and left, and 1 alone as lung of no side.
    Millilitres and shares per lung, zone and in all, densities, lesions and where they lie, and named states such as
    ``no_lung_found``; a share is None, never 0, when there is no lung to divide by. With `lobes`, five lobes by
    name or in lungmask's order, also the CT severity score of 0 to 25. Masks of
    probabilities in files are cut at the `threshold`; those of labels are left as they are.
    `series` says which DICOM series of a path is measured, as for `read_scan`.

    Raises:
        GeometryError: a mask lies on another grid than the scan.
    """
    from pneumoscope.severity.measure import assess

    volume = read_scan(scan, series=series)
    lobe_mask = None if lobes is None else _mask(lobes, volume)
    return assess(volume, _lungs(lungs, volume, threshold), _mask(infiltrate, volume, threshold), lobes=lobe_mask)


def compare(
    baseline: Any, followup: Any, *more: Any, out: str | Path | None = None, options: SegmentOptions | None = None,
    rules: RegistrationRules | None = None, overwrite: bool = False, resume: bool = False,
    progress: Progress = silent,
) -> Comparison:  # fmt: skip
    """What became of one patient's infiltrates: new, resolved, persistent, per lung and zone.

    Args:
        baseline: a case folder of `segment` or `quantify`, a result of `segment`, or what `read_scan` takes, which is
            segmented first (a path only with `out`).
        followup: a later date, likewise.
        more: further dates.
        out: a folder to write masks and report into; None writes nothing.
        options, rules, overwrite, resume, progress: see `pneumoscope.cases.compare.compare_cases`.

    Raises:
        InputError: the scans cannot be laid over each other; the message says which measure failed.
    """
    from pneumoscope.cases.compare import compare_cases
    from pneumoscope.cases.followup import write_timepoint
    from pneumoscope.inference.segmenter import Segmentation

    with ExitStack() as stack:
        folders: list[str | Path] = []
        for number, given in enumerate((baseline, followup, *more), start=1):
            if isinstance(given, (str, Path)):
                folders.append(given)
                continue
            found = given if isinstance(given, Segmentation) else segment(given)
            root = Path(stack.enter_context(TemporaryDirectory(prefix="pneumoscope-")))
            folders.append(write_timepoint(found, root / f"{number}"))
        return compare_cases(
            folders, out, options=options, rules=rules, overwrite=overwrite, resume=resume, progress=progress
        )


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

    given = (
        [images] if isinstance(images, (str, Path, Radiograph)) or not isinstance(images, Iterable) else list(images)
    )
    strange = [image for image in given if not isinstance(image, (str, Path, Radiograph))]
    if strange:
        raise InputTypeError(f"a picture is of type {type(strange[0]).__name__}, expected a path or a Radiograph")
    classifier = RadiographClassifier(model, device=device)
    least = classifier.least_side
    pictures = [i if isinstance(i, Radiograph) else read_radiograph(i, least_side=least) for i in given]
    return tuple(classify_pictures(pictures, classifier))


def evaluate(prediction: Any, reference: Any, **options: Unpack[EvaluateKeywords]) -> Evaluation:
    """Score masks against masks: two files, two folders matched by case name, or two masks as `read_mask` takes them.

    Args:
        prediction: what is scored.
        reference: what it is scored against.
        options: fields of `pneumoscope.metrics.options.EvaluateOptions`.

    Returns:
        A row per case and label, what could not be scored, and means with 95 % bootstrap intervals;
        `Evaluation.write` puts them into a folder.

    Raises:
        InputError: nothing to compare.
    """
    from pneumoscope.metrics.folders import score_folders
    from pneumoscope.metrics.options import EvaluateOptions

    made = made_of(EvaluateOptions, options)
    with TemporaryDirectory(prefix="pneumoscope-") as folder:
        sides = [
            given if isinstance(given, (str, Path)) else _mask(given, None, made.threshold).save(f"{folder}/{n}.nii.gz")
            for n, given in enumerate((prediction, reference))
        ]
        return score_folders(sides[0], sides[1], made)


def audit(
    name: str, root: str | Path, *, out: str | Path, overwrite: bool = False, resume: bool = False,
    progress: Progress = silent, **options: Unpack[AuditKeywords],
) -> AuditResult:  # fmt: skip
    """Faults in the annotations of a dataset, and a cleaned copy with ``fix``.

    Args:
        name: of `pneumoscope data list`.
        root: its folder, or the table of a manifest.
        out: the folder to write: findings.csv, audit.html, audit.json.
        overwrite, resume, progress: as for `train`.
        options: fields of `pneumoscope.cases.options.AuditOptions`.

    Raises:
        InputError: no such dataset, a folder that is not that, or a scan that cannot be read.
    """
    from pneumoscope.cases.audit import audit_dataset
    from pneumoscope.cases.options import AuditOptions

    how = made_of(AuditOptions, options)
    return audit_dataset(name, root, out, how, overwrite=overwrite, resume=resume, progress=progress)


def convert(
    name: str, root: str | Path, *, out: str | Path, to: Literal["nnunet", "slices", "manifest"],
    labels: Mapping[str | int, str] | None = None, overwrite: bool = False, progress: Progress = silent,
) -> Converted:  # fmt: skip
    """Write a dataset in the layout of another tool; see `pneumoscope.datasets.options.ConvertOptions`.

    Raises:
        InputError: an unknown layout, or a dataset that cannot be read.
    """
    from pneumoscope.datasets.convert import convert_dataset

    return convert_dataset(name, root, out, overwrite=overwrite, progress=progress, to=to, labels=labels or {})


def train(
    data: str | Path | Sequence[str | Path] | Mapping[str, str | Path], *, out: str | Path,
    start: str | Path | None = None, device: str = "auto", max_minutes: float | None = None, resume: bool = False,
    overwrite: bool = False, progress: Progress = silent, **plan: Any,
) -> OwnResult:  # fmt: skip
    """Train a model on your own scans, from new weights or those of `start`; `segment` takes the folder as its model.

    Args:
        data: a manifest, ``NAME=ROOT``, several of these, or a mapping from dataset names to folders.
        out: the model folder.
        start: a shipped model's name or a model folder to start from; None starts with new weights.
        device: auto, cpu, cuda, cuda:N or mps.
        max_minutes: stop after about so long.
        resume: continue the training in `out`.
        overwrite: start again in `out`.
        progress: called as the work advances.
        plan: ``plan`` (a file), ``dims``, and values of the plan such as ``epochs``, ``size`` or ``test_share``; see
            `pneumoscope.plans.data.plan_for`.

    Raises:
        InputError: data without training examples, or a value that the plan does not have.
        RunError: memory ran out; the message says what to change.
    """
    from pneumoscope.plans.data import plan_for, split_by_plan
    from pneumoscope.plans.train import train_own

    cases, made = plan_for(data, out, device=device, start=start, overwrite=overwrite, **plan)
    parts = split_by_plan(cases, made)
    return train_own(
        parts.train, parts.val, made, out, test=parts.test, device=device, max_minutes=max_minutes, resume=resume,
        overwrite=overwrite, progress=progress,
    )  # fmt: skip


def crossval(
    data: str | Path | Sequence[str | Path] | Mapping[str, str | Path], *, out: str | Path, folds: int = 5,
    device: str = "auto", max_minutes: float | None = None, resume: bool = False, overwrite: bool = False,
    progress: Progress = silent, **plan: Any,
) -> pd.DataFrame:  # fmt: skip
    """Train in folds, each judged on patients it has not seen; a row per scan with its Dice.

    The arguments are those of `train`; `folds`: each holds out other patients; `max_minutes` is per fold.
    """
    from pneumoscope.plans.data import plan_for
    from pneumoscope.plans.train import crossval_own

    cases, made = plan_for(data, out, device=device, overwrite=overwrite, **plan)
    return crossval_own(
        cases, made, out, folds=folds, device=device, max_minutes=max_minutes, resume=resume, overwrite=overwrite,
        progress=progress,
    )  # fmt: skip


def run_study(
    recipe: str | Experiment | VolumeExperiment | XrayExperiment, *, out: str | Path, **options: Unpack[StudyKeywords]
) -> StudyResult:
    """Run a recipe: train the stages, score each on every test set, report.

    Args:
        recipe: a name of `pneumoscope study list`, or an experiment.
        out: the study folder to write.
        options: fields of `pneumoscope.study.options.StudyOptions`; ``settings`` are changes as ``key=value``.

    Raises:
        InputError: no such recipe, key or option, a value out of bounds, a folder that is not the dataset, neither data
            nor `synthetic`, or an option of another kind of study.
        RunError: a training failed, or a model was refused by `accept_if_forgetting_below`.
    """
    from pneumoscope.study import engine

    result = engine.run_study(recipe, out, **options)
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
    from pneumoscope.study import report

    return report.compare_studies(runs, out, overwrite=overwrite)


def _mask(mask: Any, scan: Volume | None, threshold: float | None = None, read: Any = None) -> Mask:
    """A mask of any kind; those of probabilities in files and in other libraries' images are cut at the threshold."""
    from pneumoscope.io.read import read_mask_or_probability, source_of
    from pneumoscope.volume import Mask

    if isinstance(mask, Mask):
        return mask
    return read_mask_or_probability(
        source_of(mask, "the mask", Mask), threshold, read, scan=None if scan is None else scan.grid
    )


def _lungs(mask: Any, scan: Volume, threshold: float | None = None) -> Mask:
    from pneumoscope.io.read import read_lungs
    from pneumoscope.severity.regions import with_house_labels

    return with_house_labels(_mask(mask, scan, threshold, read_lungs))
