"""The viewer: a table of results, one page per result, the files of a result, and the server on loopback."""

from __future__ import annotations

import base64
import logging
import re
import socket
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pneumoscope.cases.batch import FOLDER as PRIVATE
from pneumoscope.cases.batch import read_key
from pneumoscope.errors import InputError
from pneumoscope.viewer.contents import Result, as_text, filter_results, find_results, read_rows, sort_results
from pneumoscope.viewer.guard import DOCUMENT_POLICY, RequestGuard

if TYPE_CHECKING:
    from jinja2 import Environment
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

SHOWN = {".html": "text/html; charset=utf-8", ".png": "image/png"}
"""Files that a browser shows; all others of `OFFERED` are downloads."""

OFFERED = {
    ".html", ".png", ".json", ".csv", ".gz", ".nii", ".stl", ".glb", ".vti", ".vtp", ".dcm", ".txt",
}  # fmt: skip
"""Nothing else leaves the folder."""

MAX_FILES = 400  # Files listed on one page

THUMB_PX = 240
MAX_PICTURE_BYTES, MAX_PICTURE_PX = 8 * 2**20, 40_000_000  # Of a picture in a report that becomes a thumbnail

PAGES = {"view.html": "slices and 3D", "report.html": "report", "audit.html": "audit"}
"""Pages of a result that are shown, the first first, and what their links are called."""

COLUMNS = (
    ("title", "case", ""),
    ("status", "status", ""),
    ("share_percent", "involvement", "%"),
    ("infiltrate_ml", "infiltrate", "ml"),
    ("lung_ml", "lungs", "ml"),
    ("infiltrate_mean_hu", "infiltrate density", "HU"),
    ("findings", "findings", ""),
    ("flags", "states", ""),
)


def make_app(root: Path, guard: RequestGuard) -> Starlette:
    """The application over one folder; results are looked up again at every request, so new ones appear.

    Args:
        root: the folder; nothing outside it is ever read.
        guard: decides who is answered.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.routing import Route

    pages = _Pages(root.resolve())
    routes = [
        Route("/", pages.index),
        Route("/show/{place:path}", pages.show),
        Route("/file/{place:path}", pages.file),
        Route("/thumb/{place:path}", pages.thumb),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=guard)],
        exception_handlers={InputError: _nothing_to_show},
    )


async def _nothing_to_show(request: Request, problem: Exception) -> Response:
    """The folder is gone, or has grown too large since the server was started."""
    from starlette.responses import PlainTextResponse

    return PlainTextResponse(f"{as_text(problem)}\n", 404)


class _Pages:
    """The handlers, over one resolved root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    async def index(self, request: Request) -> Response:
        """The table of everything, or the one result there is."""
        from starlette.responses import RedirectResponse

        results = find_results(self.root)
        if len(results) == 1 and results[0].status == "done":
            return RedirectResponse(f"/show/{quote(results[0].place.removeprefix('.'))}", 303)
        key = request.query_params.get("sort", "title")
        key = key if key in {name for name, _, _ in COLUMNS} else "title"
        descending = request.query_params.get("order") == "down"
        text, show = request.query_params.get("q", "")[:100], request.query_params.get("show", "all")
        every = [r for r in results if r.kind == "case"]
        cases = sort_results(filter_results(every, text, show), key, descending)
        context = {
            "every": len(every),
            "text": text,
            "show": show,
            "dates": self._dates(cases),
            "title": as_text(self.root.name or "results"),
            "cases": cases,
            "others": [r for r in results if r.kind != "case"],
            "columns": [
                c
                for c in COLUMNS
                if c[0] in ("title", "status", "flags") or any(r.numbers.get(c[0]) is not None for r in cases)
            ],
            "sort": key,
            "descending": descending,
        }
        return self._page("index.html", context)

    async def show(self, request: Request) -> Response:
        """One result: its viewer, its report, its files, the neighbours in the table."""
        place = request.path_params["place"].strip("/") or "."
        results = [r for r in find_results(self.root) if r.status == "done"]
        mine = [r for r in results if r.place == place]
        folder = self._inside(place)
        if not mine or folder is None or not folder.is_dir():
            return self._missing()
        at = results.index(mine[0])
        files = self._files(folder)
        pages = [name for name in PAGES if (folder / name).is_file()]
        wanted = request.query_params.get("page")
        page = wanted if wanted in pages else pages[0] if pages and wanted != "files" else None
        prefix = "" if place == "." else f"{place}/"
        context = {
            "title": mine[0].title,
            "result": mine[0],
            "pages": [(name, PAGES[name]) for name in pages],
            "page": page,
            "date": self._dates(mine).get(place, ""),
            "prefix": prefix,
            "files": [(name, name.removeprefix(prefix), (self.root / name).stat().st_size) for name in files],
            "before": results[at - 1] if at else None,
            "after": results[at + 1] if at + 1 < len(results) else None,
            "several": len(results) > 1,
            "table": _table(folder / "matrix.csv") if mine[0].kind == "study" else None,
        }
        return self._page("show.html", context)

    async def file(self, request: Request) -> Response:
        """One file of a result."""
        from starlette.responses import FileResponse

        place = request.path_params["place"]
        path = self._inside(place)
        if path is None or not path.is_file() or path.suffix not in OFFERED:
            return self._missing()
        kind = SHOWN.get(path.suffix)
        if kind is None:
            return FileResponse(path, filename=path.name, media_type="application/octet-stream")
        response = FileResponse(path, media_type=kind)
        if path.suffix == ".html":
            response.headers["Content-Security-Policy"] = DOCUMENT_POLICY
        return response

    def thumb(self, request: Request) -> Response:
        """The masks' row of the first picture in a report, small, as JPEG; empty (204) where there is none."""
        from PIL import Image
        from starlette.responses import Response

        folder = self._inside(request.path_params["place"].strip("/") or ".")
        if folder is None or not folder.is_dir():
            return self._missing()
        report = self._inside(f"{folder.relative_to(self.root)}/report.html")
        if report is None or not report.is_file():
            return Response(status_code=204)
        with report.open(encoding="utf-8", errors="replace") as stream:
            found = re.search(r'src="data:image/png;base64,([A-Za-z0-9+/=]+)"', stream.read(MAX_PICTURE_BYTES))
        try:
            with Image.open(BytesIO(base64.b64decode(found[1] if found else "")), formats=["PNG"]) as picture:
                if picture.width * picture.height > MAX_PICTURE_PX:
                    return Response(status_code=204)
                small = picture.convert("RGB").crop((0, picture.height // 2, picture.width, picture.height))
        except (OSError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning):
            return Response(status_code=204)
        small.thumbnail((THUMB_PX, THUMB_PX))
        jpeg = BytesIO()
        small.save(jpeg, "JPEG", quality=80)
        return Response(jpeg.getvalue(), media_type="image/jpeg")

    def _dates(self, results: list[Result]) -> dict[str, str]:
        """Study dates by place, from the key files beside the cases: for the owner's eyes, and in no report."""
        keys: dict[Path, dict[str, dict[str, str]]] = {}
        dates = {}
        for r in (r for r in results if r.place != "."):  # the key of a root that is a case lies outside of it
            run = (self.root / r.place).parent
            if run not in keys:
                keys[run] = read_key(run)
            dates[r.place] = as_text(keys[run].get(Path(r.place).name, {}).get("study_date", ""))
        return {place: date for place, date in dates.items() if date}

    def _files(self, folder: Path) -> list[str]:
        """What is offered of a result, relative to the root."""
        names = (p.relative_to(self.root).as_posix() for p in folder.rglob("*") if p.suffix in OFFERED)
        served = (
            name for name in names if name.isprintable() and (path := self._inside(name)) is not None and path.is_file()
        )
        return sorted(served)[:MAX_FILES]

    def _inside(self, place: str) -> Path | None:
        """The path below the root, links resolved; None for what is outside, hidden, private, or not there."""
        parts = Path(place).parts
        kept_back = any(part.startswith(".") or part == PRIVATE for part in parts)  # `..` too
        if Path(place).is_absolute() or kept_back or "\0" in place:
            return None
        try:
            path = (self.root / place).resolve(strict=True)
        except (OSError, RuntimeError):  # RuntimeError: links in a circle, before Python 3.13
            return None
        return path if path == self.root or path.is_relative_to(self.root) else None

    def _missing(self) -> Response:
        from starlette.responses import PlainTextResponse

        return PlainTextResponse("there is no such result here\n", 404)

    def _page(self, template: str, context: dict[str, Any]) -> Response:
        from starlette.responses import HTMLResponse

        return HTMLResponse(_templates().get_template(template).render(**context))


def _table(path: Path) -> list[list[str]] | None:
    """A small CSV as rows of text; None when it is not there, one row that says so when it cannot be read."""
    if not path.is_file():
        return None
    try:
        return [[_short(cell) for cell in row] for row in read_rows(path, 500)]
    except InputError as problem:
        return [[f"{path.name} {problem.message}"]]


def _short(cell: str) -> str:
    """Long decimals to four digits."""
    try:
        return f"{float(cell):.4g}" if "." in cell else cell
    except ValueError:
        return cell


def _templates() -> Environment:
    """The reports' environment with the viewer's own templates before it."""
    from jinja2 import ChoiceLoader, PackageLoader

    from pneumoscope.reports.page import environment

    env = environment().overlay()
    env.loader = ChoiceLoader([PackageLoader("pneumoscope.viewer"), PackageLoader("pneumoscope.reports")])
    return env


LOOPBACK = "127.0.0.1"

BACKLOG = 256  # Connections that wait to be accepted, and that are accepted at a time


def serve(root: str | Path, *, port: int = 0, ready: Callable[[str], None]) -> None:
    """Serve until interrupted.

    Args:
        root: a case folder, a folder of cases, or a study folder.
        port: 0 takes a free one.
        ready: called with the address, which works once, when the server is about to answer.

    Raises:
        InputError: nothing to show, or the port is taken.
    """
    import uvicorn

    from pneumoscope.viewer.guard import BoundedProtocol

    folder = Path(root)
    find_results(folder)
    listener = _listen(port)
    taken = listener.getsockname()[1]
    guard = RequestGuard((f"{LOOPBACK}:{taken}", f"localhost:{taken}"), f"pneumoscope-{taken}")
    config = uvicorn.Config(
        make_app(folder, guard), http=BoundedProtocol, backlog=BACKLOG, timeout_graceful_shutdown=3,
        log_config=None, access_log=False, server_header=False, lifespan="off",
    )  # fmt: skip
    for name in ("uvicorn", "asyncio"):  # a line on a stderr that nobody reads would hold every page
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
    ready(f"http://{LOOPBACK}:{taken}/?token={guard.token}")
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        listener.close()


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise InputError(
            f"port {port} cannot be used ({error.strerror}); leave --port out to take a free one"
        ) from None
    return listener
