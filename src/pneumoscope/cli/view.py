"""`pneumoscope view`: results as pages in the browser, on this machine only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pneumoscope.cli.options import Common, common_options
from pneumoscope.cli.output import say, say_json


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("view")(view)


@common_options()
def view(
    folder: Annotated[
        Path, typer.Argument(metavar="CASE_OR_RUN", help="A case folder, a folder of cases, or a study folder.")
    ],
    common: Common,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, metavar="N", help="The port; 0 takes a free one.")
    ] = 0,
    browser: Annotated[bool, typer.Option("--browser", help="Open the address in the browser.")] = False,
) -> None:
    """Look at results in the browser.

    Serves the folder on loopback: a table of its cases that sorts by severity, each case's viewer and report, a
    study's matrix. The printed address works once. Nothing can be uploaded or changed. Stop it with Ctrl-C.
    """
    from pneumoscope.viewer.serve import serve

    def ready(address: str) -> None:
        if common.json:
            say_json({"address": address})
        else:
            say(f"{address}\nThe address works once, on this machine. Stop with Ctrl-C.")
        if browser:
            import webbrowser

            webbrowser.open(address)

    serve(folder, port=port, ready=ready)
