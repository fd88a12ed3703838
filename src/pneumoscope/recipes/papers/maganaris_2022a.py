"""The first transfer study, Maganaris et al. 2022a: two channels, two datasets, one retraining, three printed rows.

Everything the paper states is here with the place it states it; everything it leaves open is marked as ours, with the
reason. Section, equation and table numbers are the paper's own. What it shares with its successor (2022b) is taken from
there only where this paper is silent, and the source says so.
"""

from __future__ import annotations

from dataclasses import replace

from pneumoscope.recipes.papers.maganaris_2022b import chain, four_channel, site, table_2
from pneumoscope.recipes.schema import Experiment
from pneumoscope.recipes.settings import OUR_CHOICE, Paper, our_choice, sourced

CITATION = (
    "Maganaris C., Protopapadakis E., Bakalos N., Doulamis N., Kalogeras D., Angeli A.: Evaluating Transferability for "
    "Covid 3D Localization Using CT SARS-CoV-2 segmentation models, PETRA 2022, pp. 615-621, "
    "doi:10.1145/3529190.3534736"
)

paper = Paper("Maganaris 2022a")

NOTES = (
    "Table 2 compares set 2 before and after retraining on different slices: before on all 2156 slices with lung "
    "(section 3.3: 'using all slides'), after on the 1656 left by the draw for retraining. We score both as printed "
    "(scoring.unseen = all); differences between stages are always taken over the test slices that both have.",
    "Equation 5 gives F1 as Pr x Re / (Pr + Re), without the factor 2; it cannot exceed 0.5, and table 2 prints 0.78. "
    "We compute 2 x Pr x Re / (Pr + Re).",
    "Whether slices without marked infiltrate enter the averages is not said. The successor (2022b, section 3.2) "
    "averages over slices with infiltrate only. Table 1 leaves 1101 of 1656 test slices of set 2 with infiltrate: with "
    "0 for each of the others no mean F1 could exceed 0.66, and table 2 prints 0.83. We follow the successor.",
    "Section 3.1 gives set 1 as 214 training, 60 validation and 440 test slices; table 1 and section 3.3 give 440, 60 "
    "and 214. The second is followed.",
    "Section 3.1 counts 714 slices where 713 show lung and explains the odd one as a false annotation; so table 1 has "
    "214 test slices where 713 - 440 - 60 leaves 213. We take slices with lung only.",
    "Section 3.3 prints an average accuracy of 0.9973 for set 1; table 2 has 0.997375, which rounds to 0.9974.",
    "The split is by slice and the scans are of few patients: neighbouring slices of one patient stand in training and "
    "test, which flatters every score on a set that the model has been trained on. The successor says so itself "
    "(2022b, section 3.1).",
    "The paper names neither optimiser, loss, patience, network width, normalisation nor output threshold, and gives "
    "no learning rate for the retraining. They are marked as our choice.",
    "The columns of slices with lung (713, 2156) and the successor's table 1 are the same; only the epochs differ (111 "
    "and 46 here, 154 and 41 there).",
)
"""Deviations and misprints of the paper, and how each is read."""

_TABLE_2 = (
    ("CT 1-9", "Tr1", 1, 0.997375, 0.751451, 0.833533, 0.783245),
    ("CT 10 (no retrain)", "Tr1", 2, 0.995027, 0.628606, 0.647012, 0.613689),
    ("CT 10 (with retrain)", "Tr1_R_2", 2, 0.997397, 0.813515, 0.863668, 0.827899),
)
"""Printed name, stage, test set, accuracy, precision, recall, F1."""


def two_channel() -> Experiment:
    """The study as published; 2022a: what differs from its successor, and every source that does."""
    base = four_channel()
    patience = OUR_CHOICE + "the paper gives none; its runs stopped at epoch 111 of 200 and 46 of 50"
    return replace(
        base,
        recipe="maganaris-2022a",
        title="Transfer between two COVID-19 CT sets: U-Net on one HU window and the lung mask",
        citation=CITATION,
        notes=NOTES,
        data=replace(
            base.data,
            sites=(
                site(paper, 1, "medseg", "CT 1-9", "A", (9, 829, 713, 373, 440, 60, 214, 111)),
                site(paper, 2, "covid19ctseg", "CT 10", "B", (10, 2581, 2156, 1351, 440, 60, 1656, 46)),
            ),
        ),
        preprocessing=replace(
            base.preprocessing,
            size=paper(320, "section 3.1: 320 x 320, nearest neighbour"),
            windows_hu=paper(((-970.0, -150.0),), "section 3.1, equation 1; values outside [0, 1] are clipped"),
            lung_channel=paper(True, "section 3.1: second channel, 1 in lung, 0 elsewhere"),
            store=our_choice("uint8", "half the memory; the rounding (1.6 HU) is below the noise of a CT"),
        ),
        network=replace(
            base.network,
            features=paper(
                (16, 32, 64, 128, 256),
                f"section 3.3 says four encoding and decoding layers; {OUR_CHOICE}16 filters, doubled per "
                "level (the text gives no widths), which a desktop processor can train",
            ),
            out_channels=paper(
                1, "section 3.1: n x 320 x 320 x 1, 1 in infiltrate; sigmoid (Maganaris 2022a, section 3.3)"
            ),
        ),
        split=replace(
            base.split,
            by=paper(
                "slice", "table 1: slices are counted, not patients; 2022b, section 3.1, says it of the same split"
            ),
            train_slices=paper(440, "table 1: 440 per set, half with and half without infiltrate"),
            validation_slices=paper(60, "table 1: 60 per set, half with and half without infiltrate"),
        ),
        training=replace(
            base.training,
            batch_size=paper(45, "section 3.3: 45, shuffled"),
            loss=our_choice("cross_entropy", "the paper names none; cross-entropy goes with a sigmoid output"),
        ),
        stages=replace(
            base.stages,
            first=replace(
                base.stages.first,
                max_epochs=paper(200, "section 3.3: 200"),
                patience=sourced(20, patience),
                learning_rate=paper(1e-4, "section 3.3: 0.0001"),
            ),
            retrain=replace(
                base.stages.retrain,
                max_epochs=paper(50, "section 3.3: reduced to 50"),
                patience=sourced(10, patience),
                learning_rate=paper(
                    1e-4, f"section 3.3 gives 0.0001 for the first training; {OUR_CHOICE}the same when retraining"
                ),
            ),
            chain=chain(
                "Maganaris 2022a, section 3.3 and Maganaris 2022a, table 2", ("Tr1", 1, None), ("Tr1_R_2", 2, "Tr1")
            ),
        ),
        lung=replace(base.lung, sites=our_choice((1, 2), "both sets have lung masks; used for a set without")),
        scoring=replace(
            base.scoring,
            threshold=our_choice(0.5, "the paper does not say which; 0.5 halves a sigmoid"),
            slices=our_choice(
                "infected", "as 2022b, section 3.2; table 2 excludes the zeros that empty slices would give"
            ),
            unseen=paper("all", "section 3.3: all slices of set 2 before the retraining"),
        ),
        paper=table_2(paper, _TABLE_2),
    )
