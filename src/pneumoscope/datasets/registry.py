"""The datasets by name: what they are, whose licence they have, where to get them, what a whole copy holds.

Facts only; importing this needs neither torch nor pandas, so that listings answer at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pneumoscope.errors import DatasetError, no_such

if TYPE_CHECKING:
    from pneumoscope.datasets.case import Case
    from pneumoscope.datasets.radiographs import XrayCase

AnyCase = TypeVar("AnyCase", "Case", "XrayCase")


@dataclass(frozen=True)
class DatasetInfo:
    """What must be known of a dataset before it is read.

    Keys of `expected` are ``scans``, ``patients``, ``slices`` (axial, of all scans together), ``slices_with_lung`` and
    ``slices_with_infiltrate`` (with at least one such voxel in the drawn mask); X-ray sets count ``images``. Patients
    are counted as the reader groups them. A suffix ``@subset`` counts some cases only, those for which
    `pneumoscope.datasets.case.in_subset` holds: ``@masks`` are the cases with an infiltrate mask, any other word is a
    ``Case.source`` (``slices@coronacases``). A count whose masks the set does not hold can be shown and not compared.
    """

    title: str  # one line for listings
    kind: Literal["ct", "slices", "xray"]  # ``ct`` volumes, ``slices`` (single pictures) or ``xray``
    licence: str  # of the data; goes into the card of every model trained on them
    citation: str  # what to cite
    home: str  # where to get it; nothing is fetched by pneumoscope
    expected: Mapping[str, int]  # published counts, see below; empty for a user's own data
    readable: bool  # whether this version reads it
    notes: tuple[str, ...] = ()  # what surprises people: labels, intensities, orientation, missing masks


_OWN = "as your data are licensed"
_OWN_CITATION = "none: your own data"
_CC_BY = "CC BY 4.0"

DATASETS: Mapping[str, DatasetInfo] = {
    "medseg": DatasetInfo(
        "MedSeg set 2: nine whole COVID-19 chest CTs (CT 1-9 of Maganaris 2022)", "ct", "CC0 1.0",
        "MedSeg, Jenssen H.B., Sakinis T.: COVID-19 CT segmentation dataset, set 2, medicalsegmentation.com/covid19",
        "https://doi.org/10.6084/m9.figshare.13521509",
        {"scans": 9, "patients": 9, "slices": 829, "slices_with_lung": 713, "slices_with_infiltrate": 373}, True,
        ("folders rp_im, rp_msk and rp_lung_msk hold files of the same names",
         "infiltrate 1 = ground-glass, 2 = consolidation, 3 = pleural effusion (rare)",
         "lungs 1 = right, 2 = left; first releases hold stray voxels of 3",
         "Hounsfield units are estimates: the images were exported from the web",
         "very probably overlaps the radiopaedia half of covid19ctseg: never train on one and test on the other"),
    ),
    "medseg-slices": DatasetInfo(
        "MedSeg set 1: 100 single slices of more than 40 COVID-19 patients", "slices",
        "free use with acknowledgement",
        "MedSeg: COVID-19 CT segmentation dataset, set 1 (images: SIRM), medicalsegmentation.com/covid19",
        "https://doi.org/10.6084/m9.figshare.13521488", {"scans@training": 100, "scans@validation": 10}, True,
        ("the third axis counts unrelated patients: it is no volume",
         "infiltrate 1 = ground-glass, 2 = consolidation, 3 = pleural effusion",
         "Hounsfield units are estimates from 8-bit pictures",
         "for the 8-bit pictures themselves see slices (source medseg)"),
    ),
    "covid19ctseg": DatasetInfo(
        "COVID-19-CT-Seg: 20 chest CTs, 10 Coronacases and 10 Radiopaedia (CT 10 of Maganaris 2022)", "ct",
        "CC BY-NC-SA 4.0 (also stated as CC BY 4.0; treated as non-commercial)",
        "Ma J. et al. 2020: COVID-19 CT Lung and Infection Segmentation Dataset, doi:10.5281/zenodo.3757476",
        "https://zenodo.org/record/3757476",
        {"scans": 20, "patients": 18, "scans@coronacases": 10, "scans@radiopaedia": 10, "slices@coronacases": 2581,
         "slices_with_lung@coronacases": 2156, "slices_with_infiltrate@coronacases": 1351}, True,
        ("on disk lungs are 1 = left, 2 = right (the other way round than here), 3 = infection in the combined mask",
         "radiopaedia scans are 8 bit (window -1250..250 on 0..255) and their headers are flipped front to back",
         "19 patients by its authors (radiopaedia_10_85902_1 and _3 are one); radiopaedia_29_86490_1 and 29_86491_1 "
         "share a case number and are kept together as well, which makes 18",
         "radiopaedia_29_86490_1 has almost no infiltrate",
         "files exist under several names (coronacases_org_001, case009, ...)"),
    ),
    "mosmed": DatasetInfo(
        "MosMedData COVID19_1110: 1110 chest CTs in 8 mm slices, 50 with infiltrate masks (CT-1 of Maganaris 2022)",
        "ct", "CC BY-NC-ND 3.0",
        "Morozov S.P. et al. 2020: MosMedData, medRxiv 2020.05.20.20100362",
        "https://mosmed.ai/en/datasets/covid191110",
        {"scans": 1110, "patients": 1110, "scans@CT-0": 254, "scans@CT-1": 684, "scans@CT-2": 125, "scans@CT-3": 45,
         "scans@CT-4": 2, "scans@masks": 50, "slices@masks": 2049, "slices_with_lung@masks": 1748,
         "slices_with_infiltrate@masks": 785}, True,
        ("no lung masks exist", "masks belong to studies 0255 to 0304, all in CT-1; ground-glass and consolidation "
         "are not distinguished", "only every tenth slice is kept: 8 mm apart"),
    ),
    "ricord": DatasetInfo(
        "MIDRC-RICORD-1a: 120 COVID-19 chest CTs as DICOM with contours", "ct", "CC BY-NC 4.0",
        "Tsai E.B. et al. 2021: The RSNA International COVID-19 Open Radiology Database, Radiology 299(1)",
        "https://doi.org/10.7937/VTW4-X588", {}, True,
        ("120 exams by its authors; a case here is a series that somebody annotated, and an exam holds several series",
         "infiltrate is Infectious opacity and Infectious TIB/micronodules, by name; all readers are joined",
         "no lung masks exist", "the dates of its folder names are made up"),
    ),
    "covid1920": DatasetInfo(
        "COVID-19-20 challenge: 199 training and 50 validation chest CTs", "ct", _CC_BY,
        "Roth H.R. et al. 2022: Rapid artificial intelligence solutions in a pandemic, Medical Image Analysis 82",
        "https://covid-segmentation.grand-challenge.org", {"scans@train": 199, "scans@validation": 50}, True,
        ("images *_ct.nii.gz and masks *_seg.nii.gz lie in one folder; validation has no masks",
         "case numbers may carry _0 or _1: one patient", "images come from an2020: do not mix the two"),
    ),
    "an2020": DatasetInfo(
        "An et al. (TCIA CT Images in COVID-19): chest CTs of 632 patients, no masks", "ct", _CC_BY,
        "An P. et al. 2020: CT Images in COVID-19, The Cancer Imaging Archive, doi:10.7937/TCIA.2020.GQRY-NC81",
        "https://doi.org/10.7937/TCIA.2020.GQRY-NC81", {"patients": 632}, True, ("no masks",),
    ),
    "nnunet": DatasetInfo(
        "A folder in nnU-Net's layout (imagesTr, labelsTr, dataset.json)", "ct", _OWN, _OWN_CITATION,
        "your own folder", {}, True,
        ("versions 1 and 2; labels are known by their names, unknown ones need labels= or --label NAME=MEANING",
         "the channel called CT is read where there are several",
         "lungsTr beside labelsTr (written by data convert) holds lung masks; nnU-Net passes over it"),
    ),
    "decathlon": DatasetInfo(
        "A folder in the Medical Segmentation Decathlon's layout (imagesTr, labelsTr, dataset.json)", "ct", _OWN,
        _OWN_CITATION, "your own folder", {}, True,
        ("labels are known by their names, unknown ones need labels= or --label NAME=MEANING",
         "._ files of macOS are passed over"),
    ),
    "miscnn": DatasetInfo(
        "A folder in MIScnn's layout (<case>/imaging.nii.gz, <case>/segmentation.nii.gz)", "ct", _OWN,
        _OWN_CITATION, "your own folder", {}, True,
        ("labels are 1 = left lung, 2 = right lung, 3 = infiltrate (covid19.MIScnn) unless labels= or --label differ",
         "folders without segmentation are refused beside others that have one"),
    ),
    "manifest": DatasetInfo(
        "Your own scans in a CSV: case,image[,lungs,infiltrate,patient,date,source]", "ct", _OWN, _OWN_CITATION,
        "your own table; paths count from its folder", {}, True,
        ("masks follow the labels here: lungs 1 = right, 2 = left; infiltrate 1 = ground-glass, 2 = consolidation",
         "a case without a patient counts as a patient of its own"),
    ),
    "slices": DatasetInfo(
        "Folders of 8-bit slices: coronacases, radiopaedia, medseg", "slices",
        "CC BY-NC-SA 4.0 (coronacases, radiopaedia), free use with acknowledgement (medseg)",
        "Ma et al. 2020, doi:10.5281/zenodo.3757476; MedSeg set 1 (SIRM), medicalsegmentation.com/covid19",
        "made from covid19ctseg and medseg-slices",
        {"slices@coronacases": 789, "slices@radiopaedia": 219, "slices@medseg": 45}, True,
        ("8-bit pictures, not Hounsfield units, of unknown size: they train models, they are no scans",
         "lungs are of no side; medseg has none",
         "radiopaedia is stored upside down and medseg transposed; both are turned when read",
         "whole scans written by data convert --to slices are read as well, in Hounsfield units"),
    ),
    "phantom": DatasetInfo(
        "Synthetic chest CTs of three made-up hospitals, with exact masks", "ct", "CC0 1.0",
        "synthetic, made by pneumoscope", "pneumoscope data phantom -o DIR --site A --patients 3", {}, True,
        ("site A stands for medseg, B for coronacases, C for mosmed (no lung masks)",
         "the masks are as each site's reader draws; exact ones lie in the folder truth",
         "planted annotation faults are listed in faults.csv"),
    ),
    "kermany": DatasetInfo(
        "Kermany et al.: 5856 paediatric chest X-rays, normal or pneumonia", "xray", _CC_BY,
        "Kermany D. et al. 2018: Labeled OCT and Chest X-Ray Images, Mendeley Data, doi:10.17632/rscbjbr9sj",
        "https://data.mendeley.com/datasets/rscbjbr9sj", {"images": 5856}, True,
        ("children of one to five years only", "several images per person<N>: split by patient"),
    ),
    "cohen": DatasetInfo(
        "Cohen et al.: COVID-19 chest X-ray collection", "xray", "per image (see the table); metadata CC BY-NC-SA 4.0",
        "Cohen J.P. et al. 2020: COVID-19 Image Data Collection, arXiv:2006.11988",
        "https://github.com/ieee8023/covid-chestxray-dataset", {}, True,
        ("table cells need stripping", "several images per patientid: split by patient"),
    ),
    "hannover": DatasetInfo(
        "Hannover Medical School: COVID-19 chest X-rays", "xray", "CC BY 3.0",
        "Winther H.B. et al. 2020: COVID-19 Image Repository, doi:10.6084/m9.figshare.12275009",
        "https://github.com/ml-workgroup/covid-19-image-repository", {}, True,
        ("several images per patient",),
    ),
    "nih": DatasetInfo(
        "NIH ChestX-ray14: adult chest X-rays with labels mined from reports", "xray",
        "no restriction, with acknowledgement of the NIH Clinical Center",
        "Wang X. et al. 2017: ChestX-ray8, CVPR", "https://nihcc.app.box.com/v/ChestXray-NIHCC",
        {"images": 112120, "patients": 30805}, True, ("labels come from text mining",),
    ),
    "radiographs": DatasetInfo(
        "Your own X-rays in a CSV: image,label[,patient,source]", "xray", _OWN, _OWN_CITATION, "your own table", {},
        True,
    ),
}  # fmt: skip


PHANTOM_FILE = "phantom.json"  # Marks a folder of `data phantom`

READERS: Mapping[str, str] = {
    "phantom": "pneumoscope.datasets.phantom.folder:read_phantom",
    "medseg": "pneumoscope.datasets.public.medseg:read_medseg_cases",
    "medseg-slices": "pneumoscope.datasets.public.medseg:read_medseg_slices_cases",
    "covid19ctseg": "pneumoscope.datasets.public.covid19ctseg:read_covid19ctseg_cases",
    "mosmed": "pneumoscope.datasets.public.mosmed:read_mosmed_cases",
    "covid1920": "pneumoscope.datasets.public.covid1920:read_covid1920_cases",
    "an2020": "pneumoscope.datasets.public.an2020:read_an2020_cases",
    "ricord": "pneumoscope.datasets.public.ricord:read_ricord_cases",
    "nnunet": "pneumoscope.datasets.formats.nnunet:read_nnunet_cases",
    "decathlon": "pneumoscope.datasets.formats.nnunet:read_decathlon_cases",
    "miscnn": "pneumoscope.datasets.formats.miscnn:read_miscnn_cases",
    "slices": "pneumoscope.datasets.slices:read_slice_cases",
    "manifest": "pneumoscope.datasets.formats.manifest:read_manifest_cases",
}
"""Which function reads which dataset, as ``module:function``; imported when it is asked for."""


def dataset_info(name: str) -> DatasetInfo:
    """The facts of one dataset.

    Raises:
        DatasetError: no such name; the message lists the known ones.
    """
    if name not in DATASETS:
        raise DatasetError(no_such("dataset", name, DATASETS))
    return DATASETS[name]


def read_dataset(name: str, root: str | Path, **options: Any) -> list[Case]:
    """The cases of a dataset in `root`; scans are read when a case is loaded.

    A folder written by `data phantom` is read whatever `name` says, so that synthetic sites can stand in for real sets.

    Args:
        name: a key of `DATASETS`.
        options: keywords of the set's own reader, e.g. ``eight_bit="refuse"`` of covid19ctseg.

    Raises:
        DatasetError: unknown name, a folder that is not that dataset, or a set of radiographs: its pictures are no
            cases of this kind and come from `datasets.radiographs.read_radiographs`.
    """
    info = dataset_info(name)
    if info.kind == "xray":
        raise DatasetError(
            f"{name} holds radiographs, not CT; read them with read_radiographs, or run study run katsamenis-2020 "
            f"--data {name}=ROOT",
            path=root,
        )
    if info.kind == "ct" and (Path(root) / PHANTOM_FILE).is_file():
        name, options = "phantom", {}
    module, _, function = READERS[name].partition(":")
    return require_unique(getattr(import_module(module), function)(root, **options), root)


def require_unique(cases: list[AnyCase], root: str | Path) -> list[AnyCase]:
    """The cases as they came, or DatasetError naming the first case name that occurs twice."""
    often = Counter(case.case for case in cases)
    twice = next((name for name, count in often.items() if count > 1), None)
    if twice is not None:
        raise DatasetError(f"names case {twice!r} twice; case names must be unique", path=root)
    return cases
