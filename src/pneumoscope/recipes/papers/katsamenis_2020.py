"""Katsamenis et al. 2020: COVID-19 in chest X-rays by transfer learning, and what is left of it without shortcuts.

Numbers of the paper stand with their section; what it leaves open is marked as ours. The part ``honest`` is not in the
paper: it asks what the classifier has learnt when every child is from one hospital and every COVID-19 patient is an
adult from another.
"""

from __future__ import annotations

from pneumoscope.recipes.settings import OUR_CHOICE, Paper, all_from, our_choice
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
paper = Paper("Katsamenis 2020")

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


def _data() -> XrayData:
    return XrayData(
        children=paper("kermany", "section 3.2: Kermany et al., Dataset_0 and part of Dataset_1"),
        covid=paper(
            ("cohen", "hannover"),
            f"section 3.2: Cohen et al.; {OUR_CHOICE}Hannover beside it, so that a source can be held out",
        ),
        adults=our_choice("nih", "NIH ChestX-ray14, adults from before the pandemic: none of them has COVID-19"),
        classes_0=paper(("normal", "bacterial", "viral"), "section 3.2"),
        classes_1=paper(("normal", "bacterial", "covid19"), "section 3.1 and Katsamenis 2020, section 3.2"),
        per_class_0=our_choice(
            None, "all; the paper has 1575, 2772 and 1493 (section 3.2), public copies have a few less"
        ),
        per_class_1=paper((544, 500, 456), "section 3.2: 544 healthy, 500 bacterial, 456 COVID-19"),
        shortage=our_choice("all", "copies of the COVID-19 sets differ in size; what is missing is said"),
        apart=our_choice(True, "the paper's way lets Model_0 learn the classes of test pictures"),
    )


def _training() -> XrayTraining:
    return XrayTraining(
        stages=paper(MODELS, "section 3.4"),
        optimiser=paper("adam", "section 4.1: Adam, beta 0.9 and 0.999"),
        max_epochs=paper(500, "section 4.1: 500 epochs"),
        patience=paper(10, "section 4.1: early stopping set to 10 epochs"),
        batch_size=paper(20, "section 4.1: batches of size 20"),
        learning_rate=paper(1e-3, "section 4.1: 0.001"),
        fine_rate=paper(1e-4, "section 4.1: 0.0001 after unfreezing"),
        plateau_epochs=paper(5, "section 4.1: five epochs without better validation loss"),
        plateau_factor=paper(0.1, "section 4.1: reduced by a factor of 10"),
        last_layers=paper(11, "section 4.1: the last 11 layers of Model_3"),
        repeats=our_choice(3, "the paper trains once; three draws, splits and trainings show how much is chance"),
        precision=our_choice("auto", "bf16 where the processor computes in it"),
        seed=our_choice(0, "any; fixed so that the study can be repeated"),
    )


def _honest() -> XrayHonest:
    return XrayHonest(
        thumbnail=our_choice(16, "shows large shadows at most, and age and framing well enough"),
        corner_share=our_choice(0.125, "an eighth: no lung reaches into it"),
        corner_thumbnail=our_choice(8, "as many numbers as a thumbnail of 16 x 16"),
        penalties=our_choice((0.001, 0.01, 0.1, 1.0), "a decade apart; the validation loss chooses"),
        border=our_choice(0.1, "letters, collimator edges and black bars lie in the outer tenth"),
        clahe_limit=our_choice(2.0, "moderate; OpenCV's default of 40 makes noise"),
        clahe_tiles=our_choice(8, "OpenCV's default"),
        lung_box=our_choice(
            (0.12, 0.82, 0.08, 0.92),
            "one fixed box for all: a stand-in for a lung mask, which cannot learn where a picture is from",
        ),
        adults_train=our_choice(0.5, "half learn, half test"),
        networks=our_choice(ARMS, "all remedies, so that one table answers"),
        held_out_networks=our_choice(True, "the only honest test of a source that was never seen"),
    )


_ROWS = (
    ("Model_1", 0.9232, 0.9303, 0.9217, 0.9246),
    ("Model_2", 0.9565, 0.9569, 0.9562, 0.9549),
    ("Model_3", 0.9766, 0.9773, 0.9767, 0.9761),
)
"""Network, accuracy, precision, recall, F1."""


def chest_xray() -> XrayExperiment:
    """The paper's experiment, with the honest part beside it."""
    return XrayExperiment(
        recipe="katsamenis-2020",
        title="COVID-19 in chest X-rays by transfer learning, and what a shortcut makes of it",
        citation=CITATION,
        notes=NOTES,
        data=_data(),
        pictures=XrayPictures(
            side=paper(224, "section 4.1: 224 x 224"),
            fit=paper(
                "stretch", f"section 4.1: 'resized', which we read as stretched; {OUR_CHOICE}pad keeps the proportions"
            ),
        ),
        split=XraySplit(
            by=our_choice("group", "pictures of one patient are alike; the paper's way (image) flatters"),
            test_share=paper(0.2, f"section 3.2: 80 % training, 20 % test; {OUR_CHOICE}Dataset_0 likewise"),
            validation_share=paper(0.125, "section 3.2: 12.5 % of the training part"),
            correlation=our_choice(0.995, "chests of different people stay below it"),
            seed=our_choice(0, "any; fixed so that the study can be repeated"),
        ),
        network=XrayNetwork(
            features=our_choice(
                (8, 16, 32, 64, 128),
                "figure 3 is missing from the text; five blocks see half of the chest at "
                "once and train on a desktop processor",
            ),
            dropout=our_choice(0.3, "figure 3 is missing from the text"),
            resnet_width=paper(64, "section 3.4: ResNet-50 pretrained on ImageNet"),
        ),
        training=_training(),
        honest=_honest(),
        scoring=XrayScoring(
            interval_level=our_choice(0.95, "usual"),
            interval_resamples=our_choice(2000, "enough for two digits"),
            interval_seed=our_choice(0, "any; fixed"),
            timed_pictures=our_choice(40, "enough for a stable median"),
        ),
        published=XrayPublished(
            dataset_0=paper((1575, 2772, 1493), "section 3.2: healthy, bacterial, viral"),
            ms_per_image=paper((26.9, 42.7), "section 4.2 (figure 6): 26.9 to 42.7 ms on a Tesla K80"),
        ),
        paper=tuple(
            all_from(
                "Katsamenis 2020, section 4.2 (figures 4 and 5)",
                XrayPaperRow,
                name=name,
                accuracy=acc,
                precision=pre,
                recall=rec,
                f1=f1,
            )
            for name, acc, pre, rec, f1 in _ROWS
        ),
    )
