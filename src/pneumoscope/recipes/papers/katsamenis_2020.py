"""Katsamenis et al. 2020: COVID-19 in chest X-rays by transfer learning, and what is left of it without shortcuts.

Numbers of the paper stand with their section; what it leaves open is marked as ours. The part ``honest`` is not in the
paper: it asks what the classifier has learnt when every child is from one hospital and every COVID-19 patient is an
adult from another.
"""

from __future__ import annotations

from pneumoscope.recipes.settings import OUR_CHOICE, setting_fields
from pneumoscope.recipes.xray import (
    ARMS,
    MODELS,
    XrayData,
    XrayExperiment,
    XrayHonest,
    XrayNetwork,
    XrayPaperRow,
    XrayPictures,
    XrayPublished,
    XrayScoring,
    XraySplit,
    XrayTraining,
)

CITATION = (
    "Katsamenis I., Protopapadakis E., Voulodimos A., Doulamis A., Doulamis N.: Transfer Learning for COVID-19 "
    "Pneumonia Detection and Classification in Chest X-ray Images (2020), medRxiv 2020.12.14.20248158"
)
SECTION_31 = "Katsamenis 2020, section 3.1"
SECTION_32 = "Katsamenis 2020, section 3.2"
SECTION_34 = "Katsamenis 2020, section 3.4"
SECTION_41 = "Katsamenis 2020, section 4.1"
SECTION_42 = "Katsamenis 2020, section 4.2"

NOTES = (
    "Figure 3, which shows the simple CNN, is not in the text we have: its widths and depth are ours, and Model_0, "
    "Model_1 and Model_2 can be compared with the paper in kind only.",
    "The paper splits pictures and does not speak of patients. Here patients are kept whole, and pictures that are the "
    "same, or nearly, keep their patients together; --set split.by=image does as the paper.",
    "Dataset_1's normal and bacterial pictures are a subset of Dataset_0 (section 3.2), so Model_0, from which Model_2 "
    "begins, has seen pictures of the test set with their class. Here such patients do not teach Model_0; "
    "--set data.apart=false does as the paper.",
    "'The last 11 layers' of Model_3 are taken as the last 11 convolutions and dense layers with their normalisation "
    "(the last stage of the ResNet, one convolution before it, and the dense layer). Keras counts activations and "
    "additions as layers too.",
    "Early stopping and the plateau watch the validation loss; section 4.1 says so for the plateau only. 500 epochs "
    "are the bound of each step of a training.",
    "Precision, recall and F1 are means over the classes; the paper does not say which mean it prints.",
    "Model_3 needs a file with published ImageNet weights, given as --data resnet50=FILE. Without it the stage is left "
    "out: nothing is fetched, and random weights would not be Model_3.",
    "All children are from one hospital, all COVID-19 patients are adults from others: class and source are one. The "
    "part 'honest' measures what that does.",
)


def _ours(**reasons: str) -> dict[str, str]:
    return {name: OUR_CHOICE + reason for name, reason in reasons.items()}


def _data() -> XrayData:
    return XrayData(
        children="kermany",
        covid=("cohen", "hannover"),
        adults="nih",
        classes_0=("normal", "bacterial", "viral"),
        classes_1=("normal", "bacterial", "covid19"),
        per_class_0=None,
        per_class_1=(544, 500, 456),
        shortage="all",
        apart=True,
        sources={
            "children": f"{SECTION_32}: Kermany et al., Dataset_0 and part of Dataset_1",
            "covid": f"{SECTION_32}: Cohen et al.; {OUR_CHOICE}Hannover beside it, so that a source can be held out",
            "classes_0": f"{SECTION_32}",
            "classes_1": f"{SECTION_31} and {SECTION_32}",
            "per_class_1": f"{SECTION_32}: 544 healthy, 500 bacterial, 456 COVID-19",
            **_ours(
                adults="NIH ChestX-ray14, adults from before the pandemic: none of them has COVID-19",
                per_class_0="all; the paper has 1575, 2772 and 1493 (section 3.2), public copies have a few less",
                shortage="copies of the COVID-19 sets differ in size; what is missing is said",
                apart="the paper's way lets Model_0 learn the classes of test pictures",
            ),
        },
    )


def _training() -> XrayTraining:
    return XrayTraining(
        stages=MODELS,
        optimiser="adam",
        max_epochs=500,
        patience=10,
        batch_size=20,
        learning_rate=1e-3,
        fine_rate=1e-4,
        plateau_epochs=5,
        plateau_factor=0.1,
        last_layers=11,
        repeats=3,
        precision="auto",
        seed=0,
        sources={
            "stages": SECTION_34,
            "optimiser": f"{SECTION_41}: Adam, beta 0.9 and 0.999",
            "max_epochs": f"{SECTION_41}: 500 epochs",
            "patience": f"{SECTION_41}: early stopping set to 10 epochs",
            "batch_size": f"{SECTION_41}: batches of size 20",
            "learning_rate": f"{SECTION_41}: 0.001",
            "fine_rate": f"{SECTION_41}: 0.0001 after unfreezing",
            "plateau_epochs": f"{SECTION_41}: five epochs without better validation loss",
            "plateau_factor": f"{SECTION_41}: reduced by a factor of 10",
            "last_layers": f"{SECTION_41}: the last 11 layers of Model_3",
            **_ours(
                repeats="the paper trains once; three draws, splits and trainings show how much is chance",
                precision="bf16 where the processor computes in it",
                seed="any; fixed so that the study can be repeated",
            ),
        },
    )


def _honest() -> XrayHonest:
    return XrayHonest(
        thumbnail=16,
        corner_share=0.125,
        corner_thumbnail=8,
        penalties=(0.001, 0.01, 0.1, 1.0),
        border=0.1,
        clahe_limit=2.0,
        clahe_tiles=8,
        lung_box=(0.12, 0.82, 0.08, 0.92),
        adults_train=0.5,
        networks=ARMS,
        held_out_networks=True,
        sources=_ours(
            thumbnail="shows large shadows at most, and age and framing well enough",
            corner_share="an eighth: no lung reaches into it",
            corner_thumbnail="as many numbers as a thumbnail of 16 x 16",
            penalties="a decade apart; the validation loss chooses",
            border="letters, collimator edges and black bars lie in the outer tenth",
            clahe_limit="moderate; OpenCV's default of 40 makes noise",
            clahe_tiles="OpenCV's default",
            lung_box="one fixed box for all: a stand-in for a lung mask, which cannot learn where a picture is from",
            adults_train="half learn, half test",
            networks="all remedies, so that one table answers",
            held_out_networks="the only honest test of a source that was never seen",
        ),
    )


def _paper() -> tuple[XrayPaperRow, ...]:
    names = [item.name for item in setting_fields(XrayPaperRow)]
    rows = (
        ("Model_1", 0.9232, 0.9303, 0.9217, 0.9246),
        ("Model_2", 0.9565, 0.9569, 0.9562, 0.9549),
        ("Model_3", 0.9766, 0.9773, 0.9767, 0.9761),
    )
    said = f"{SECTION_42} (figures 4 and 5)"
    return tuple(
        XrayPaperRow(name=name, **dict(zip(names, values, strict=True)), sources=dict.fromkeys(names, said))
        for name, *values in rows
    )


def chest_xray() -> XrayExperiment:
    """The paper's experiment, with the honest part beside it."""
    return XrayExperiment(
        recipe="katsamenis-2020",
        title="COVID-19 in chest X-rays by transfer learning, and what a shortcut makes of it",
        citation=CITATION,
        notes=NOTES,
        data=_data(),
        pictures=XrayPictures(
            side=224,
            fit="stretch",
            sources={
                "side": f"{SECTION_41}: 224 x 224",
                "fit": f"{SECTION_41}: 'resized', which we read as stretched; {OUR_CHOICE}pad keeps the proportions",
            },
        ),
        split=XraySplit(
            by="group",
            test_share=0.2,
            validation_share=0.125,
            likeness=0.995,
            seed=0,
            sources={
                "test_share": f"{SECTION_32}: 80 % training, 20 % test; {OUR_CHOICE}Dataset_0 likewise",
                "validation_share": f"{SECTION_32}: 12.5 % of the training part",
                **_ours(
                    by="pictures of one patient are alike; the paper's way (image) flatters",
                    likeness="chests of different people stay below it",
                    seed="any; fixed so that the study can be repeated",
                ),
            },
        ),
        network=XrayNetwork(
            features=(8, 16, 32, 64, 128),
            dropout=0.3,
            resnet_width=64,
            sources={
                "features": f"{OUR_CHOICE}figure 3 is missing from the text; five blocks see half of the chest at "
                "once and train on a desktop processor",
                "dropout": f"{OUR_CHOICE}figure 3 is missing from the text",
                "resnet_width": f"{SECTION_34}: ResNet-50 pretrained on ImageNet",
            },
        ),
        training=_training(),
        honest=_honest(),
        scoring=XrayScoring(
            interval_level=0.95,
            interval_resamples=2000,
            interval_seed=0,
            timed_pictures=40,
            sources=_ours(
                interval_level="usual",
                interval_resamples="enough for two digits",
                interval_seed="any; fixed",
                timed_pictures="enough for a stable median",
            ),
        ),
        published=XrayPublished(
            dataset_0=(1575, 2772, 1493),
            ms_per_image=(26.9, 42.7),
            sources={
                "dataset_0": f"{SECTION_32}: healthy, bacterial, viral",
                "ms_per_image": f"{SECTION_42} (figure 6): 26.9 to 42.7 ms on a Tesla K80",
            },
        ),
        paper=_paper(),
        sources={},
    )
