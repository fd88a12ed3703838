"""Options are declared once, as fields of a dataclass; the command line follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from pneumoscope.cli.options import Common, common_options, new_group
from pneumoscope.errors import InputError
from pneumoscope.options import REQUIRED, named, option, recorded, require_choices, sides


@dataclass(frozen=True, kw_only=True)
class Made:
    model: str | Path | Sequence[str | Path] = option("infiltrate", "The model.", metavar="NAME|DIR", file=True)
    lungs: str | Path | None = option(None, "A lung mask.", metavar="MASK", file=True)
    intensity: Literal["auto", "hu"] = option("auto", "What is taken for Hounsfield units.")
    mirror: bool | None = option(None, "Also mirrored.")
    fast: bool = option(False, "Masks only.")
    heat: bool = option(True, "Heat maps.", flags=("--heatmaps/--no-heatmaps",))
    save: Sequence[str] = option((), "More files.", commas=True)
    threshold: float | None = option(None, "Of probability masks.", low=0, high=1)
    data: Mapping[str, str] = option(dict, "Sets.", parse=named, many=True, file=True)
    size: tuple[int, ...] | None = option(None, "Of a picture.", parse=sides)
    device: str = "auto"


def call(*words: str) -> Any:
    """The options that a verb gets, or the text of the refusal."""
    app, got = new_group(""), []

    @app.command()
    @common_options("device", options=Made)
    def verb(out: Annotated[str, typer.Option("--out")], common: Common, options: Made) -> None:
        got.append(options)

    ended = CliRunner().invoke(app, ["--out", "o", *words])
    return got[0] if got else ended.output


def test_nothing_given_is_the_defaults() -> None:
    assert call() == Made()


def test_every_kind_of_value_arrives() -> None:
    assert call(
        "--model", "a", "--model", "b", "--lungs", "x/l.nii", "--intensity", "hu", "--no-mirror", "--fast",
        "--no-heatmaps", "--save", "vti,mesh", "--save", "vti", "--threshold", "0.4", "--device", "cpu",
        "--data", "a=/x/y", "--data", "b=1=2", "--size", "4x5X6",
    ) == Made(
        model=("a", "b"), lungs=Path("x/l.nii"), intensity="hu", mirror=False, fast=True, heat=False,
        save=("vti", "mesh"), threshold=0.4, device="cpu",
        data={"a": "/x/y", "b": "1=2"}, size=(4, 5, 6),
    )  # fmt: skip
    assert call("--model", "a").model == "a"


@pytest.mark.parametrize(
    "words",
    [("--intensity", "grey"), ("--threshold", "1.5"), ("--no-fast",), ("--device", "tpu"), ("--data", "a"),
     ("--data", "a=1", "--data", "a=2"), ("--size", "4x0"), ("--size", "4")],
)  # fmt: skip
def test_what_no_field_allows_is_a_usage_error(words: tuple[str, ...]) -> None:
    assert words[0] in call(*words) or "Error" in call(*words)


def test_help_is_that_of_the_fields() -> None:
    text = call("--help")
    for part in ("NAME|DIR", "A lung mask.", "auto|hu", "--mirror", "--no-mirror", "--heatmaps", "Masks only."):
        assert part in text


def test_a_record_holds_no_folders() -> None:
    made = Made(model=("a/b/one", "two"), lungs=Path("/home/somebody/l.nii.gz"), data={"a": "/home/somebody/set"})
    assert recorded(made) == {
        "model": ["one", "two"], "lungs": "l.nii.gz", "intensity": "auto", "mirror": None, "fast": False, "heat": True,
        "save": (), "threshold": None, "device": "auto", "data": {"a": "set"}, "size": None,
    }  # fmt: skip
    assert recorded(Made(model=("a/b",)))["model"] == "b"


@dataclass(frozen=True, kw_only=True)
class Needed:
    to: Literal["csv", "png"] = option(REQUIRED, "The format.")
    labels: Mapping[str, str] = option(REQUIRED, "Labels.", parse=named, many=True, ask="labels, e.g. 1=lung")

    def __post_init__(self) -> None:
        require_choices(self)


def test_what_must_be_given_is_a_usage_error_without_a_terminal() -> None:
    app, got = new_group(""), []

    @app.command()
    @common_options(options=Needed)
    def verb(common: Common, options: Needed) -> None:
        got.append(options)

    for words in (["--label", "1=lung"], ["--to", "csv"], ["--to", "nii", "--labels", "1=lung"]):
        assert CliRunner().invoke(app, words).exit_code == 2
    assert "labels, e.g. 1=lung" in CliRunner().invoke(app, ["--to", "csv"]).output
    assert CliRunner().invoke(app, ["--to", "png", "--labels", "1=lung"]).exit_code == 0
    assert got == [Needed(to="png", labels={"1": "lung"})]
    with pytest.raises(InputError, match="to is 'nii', expected one of csv, png"):
        Needed(to="nii", labels={})  # type: ignore[arg-type]
