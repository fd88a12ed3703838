"""The served viewer: what it shows, and whom it refuses."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from pneumoscope.errors import InputError
from pneumoscope.viewer.app import make_app
from pneumoscope.viewer.contents import find_results, sort_results
from pneumoscope.viewer.guard import RequestGuard

HOST = "127.0.0.1:8765"


def write_result(folder: Path, case: str, share: float | None, states=()) -> None:
    folder.mkdir(parents=True)
    total = {"lung_ml": 4000.0, "infiltrate_ml": None if share is None else 40 * share, "share_percent": share}
    report = {"case": case, "severity": {"total": total, "states": list(states)}, "findings": [{}]}
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "report.html").write_text(f"<p>report of {case}</p><script>parent.x=1</script>")
    (folder / "lungs.nii.gz").write_bytes(b"\x1f\x8bmask")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    root = tmp_path / "out"
    write_result(root / "a", "case-a", 2.5)
    write_result(root / "b", "case-b", 60.0, ("lung_incomplete",))
    write_result(root / "c", "<script>alert(1)</script>", None, ("no_lung_found",))
    (root / "cases.csv").write_text("case,status,error\ncase-a,done,\nbroken,failed,the file ends too early\n")
    study = root / "study"
    study.mkdir()
    (study / "experiment.json").write_text('{"recipe": "maganaris-2022b"}')
    (study / "matrix.csv").write_text("name,f1\nTr1_R_None_Te1,0.70321\n")
    (study / "report.html").write_text("the study")
    (tmp_path / "secret.csv").write_text("outside")
    (root / "a" / "link.csv").symlink_to(tmp_path / "secret.csv")
    (root / "a" / ".hidden.csv").write_text("hidden")
    (root / "a" / "model.safetensors").write_text("weights")
    return root


@pytest.fixture
def guard() -> RequestGuard:
    return RequestGuard((HOST, "localhost:8765"), "pneumoscope-8765")


@pytest.fixture
def stranger(run: Path, guard: RequestGuard) -> TestClient:
    return TestClient(make_app(run, guard), base_url=f"http://{HOST}")


@pytest.fixture
def known(stranger: TestClient, guard: RequestGuard) -> TestClient:
    assert stranger.get(f"/?token={guard.token}").status_code == 200
    return stranger


def test_nothing_without_the_address(stranger):
    for path in ("/", "/show/a", "/file/a/report.html", "/file/a/lungs.nii.gz"):
        answer = stranger.get(path)
        assert answer.status_code == 403
        assert "case-a" not in answer.text


def test_the_token_works_once(run, guard):
    token = guard.token
    first = TestClient(make_app(run, guard), base_url=f"http://{HOST}")
    answer = first.get(f"/?token={token}", follow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/", "the token must not stay in the address bar"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    second = TestClient(make_app(run, guard), base_url=f"http://{HOST}")
    assert second.get(f"/?token={token}").status_code == 403
    assert second.get("/?token=").status_code == 403
    assert first.get("/").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example:8765"}, {"host": "127.0.0.1:1"}, {"host": "127.0.0.1"},
        {"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
    ids=str,
)  # fmt: skip
def test_other_pages_and_names_are_refused(known, headers):
    assert known.get("/").status_code == 200
    assert known.get("/", headers=headers).status_code == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_sent(known, method):
    assert known.request(method, "/").status_code == 405


@pytest.mark.parametrize(
    "path",
    [
        "/file/../secret.csv", "/file/%2e%2e/secret.csv", "/file/a/..%2f..%2fsecret.csv", "/file//etc/passwd",
        "/file/%2fetc%2fpasswd", "/file/a/link.csv", "/file/a/.hidden.csv", "/file/a/model.safetensors", "/file/a",
        "/file/a/%00", "/file/nothing.csv", "/show/%2e%2e", "/show/nothing",
    ],
)  # fmt: skip
def test_paths_cannot_leave_the_folder(known, path):
    answer = known.get(path)
    assert answer.status_code == 404
    assert "outside" not in answer.text
    assert "root:" not in answer.text


def test_the_table_sorts_by_severity_and_escapes_names(known):
    page = known.get("/?sort=share_percent&order=down").text
    assert page.index("case-b") < page.index("case-a") < page.index("&lt;script&gt;")
    page = known.get("/?sort=share_percent&order=up").text
    assert page.index("case-a") < page.index("case-b") < page.index("&lt;script&gt;"), "no number comes last"
    assert "<script" not in page
    assert "broken" in page
    assert "the file ends too early" in page
    assert "lung incomplete" in page
    assert "study: maganaris-2022b" in page


def test_an_unknown_sort_key_is_the_name(known):
    assert known.get("/?sort=__class__&order=sideways").status_code == 200


def test_a_case_shows_its_report_and_offers_its_files(known):
    page = known.get("/show/a").text
    assert '<iframe src="/file/a/report.html"' in page
    assert "/show/b" in page, "the next case"
    page = known.get("/show/a?page=files").text
    assert "<iframe" not in page
    assert "/file/a/lungs.nii.gz" in page
    assert "link.csv" not in page
    assert ".hidden" not in page


def test_cases_are_filtered_by_name_and_state(known):
    assert "case-b" not in known.get("/?q=ASE-A").text
    flagged = known.get("/?show=flagged").text
    assert "case-b" in flagged
    assert "case-a" not in flagged
    assert "broken" in known.get("/?show=failed&q=brok").text
    hostile = known.get('/?q="><script>&show="><script>&sort=title').text
    assert "<script" not in hostile
    assert "4 cases, 0 shown" in hostile


def test_a_thumbnail_is_the_row_of_a_report_with_masks(run, known):
    from PIL import Image

    stream = io.BytesIO()
    picture = Image.new("RGB", (600, 400), "black")
    picture.paste("white", (0, 200, 600, 400))
    picture.save(stream, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    (run / "a" / "report.html").write_text(f'<figure><img src="{uri}"></figure>')
    with Image.open(io.BytesIO(known.get("/thumb/a").content)) as small:
        assert small.size == (240, 80)
        assert small.convert("L").getextrema()[0] > 200
    (run / "b" / "report.html").write_text('<img src="data:image/png;base64,AAAA">')
    (run / "study" / "report.html").unlink()
    for place in ("b", "c", "study"):
        assert known.get(f"/thumb/{place}").status_code == 204, "a result without a picture is no error in the console"
    for place in ("study/%2e%2e/a", "../out/a", "nothing"):
        assert known.get(f"/thumb/{place}").status_code == 404


def test_study_dates_come_from_the_key_that_is_not_served(run, known):
    (run / "private").mkdir()
    row = "a,/exports/DOE^JOHN,2.25.1,SECRET7,20200317"
    (run / "private" / "key.csv").write_text(f"case,path,series_uid,patient,study_date\n{row}\n")
    for page in (known.get("/"), known.get("/show/a")):
        assert "20200317" in page.text
        assert "SECRET7" not in page.text
        assert "DOE" not in page.text
    (run / "private" / "key.csv").write_text('case,"')
    assert known.get("/").status_code == 200


def test_audits_and_radiographs_are_results_too(run, known):
    for name, marker, page in (("audit", "audit.json", "audit.html"), ("films", "predictions.csv", "report.html")):
        (run / name).mkdir()
        for file in (marker, page):
            (run / name / file).write_text("{}")
        assert f'href="/show/{name}"' in known.get("/").text
        assert f'<iframe src="/file/{name}/{page}"' in known.get(f"/show/{name}").text


def test_a_study_shows_its_matrix(known):
    page = known.get("/show/study?page=files").text
    assert "Tr1_R_None_Te1" in page
    assert "0.7032" in page


def test_documents_are_boxed_and_pages_run_no_script(known):
    document = known.get("/file/a/report.html")
    assert document.headers["content-security-policy"].startswith("sandbox allow-scripts")
    assert "allow-same-origin" not in document.headers["content-security-policy"]
    page = known.get("/")
    assert "script-src" not in page.headers["content-security-policy"]
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for answer in (document, page):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers


def test_masks_are_downloads(known):
    answer = known.get("/file/a/lungs.nii.gz")
    assert answer.content == b"\x1f\x8bmask"
    assert answer.headers["content-disposition"].startswith("attachment")


def test_one_result_is_shown_at_once(run, guard):
    client = TestClient(make_app(run / "a", guard), base_url=f"http://{HOST}")
    page = client.get(f"/?token={guard.token}")
    assert page.url.path == "/show/"
    assert '<iframe src="/file/report.html"' in page.text


def test_wrong_types_in_a_report_are_no_numbers(run):
    (run / "a" / "report.json").write_text('{"severity": {"total": {"share_percent": "NaN"}, "states": 7}, "case": []}')
    found = {r.place: r for r in find_results(run)}
    assert found["a"].numbers["share_percent"] is None
    assert found["a"].title == "a"


BAD_REPORTS = {
    "deep": "[" * 100_000, "digits": '{"severity": {"total": {"share_percent": 1' + "0" * 400 + "}}}",
    "more digits": '{"a": ' + "9" * 5000 + "}", "NaN": '{"severity": {"total": {"share_percent": NaN}}}',
    "half a character": r'{"case": "\ud800"}', "cut": '{"case": "b", "sev', "list": "[1, 2]", "empty": "",
    "bytes": b"\xff\xfe\x00",
}  # fmt: skip


@pytest.mark.parametrize("content", BAD_REPORTS.values(), ids=BAD_REPORTS)
@pytest.mark.parametrize("name", ["b/report.json", "study/experiment.json", "change/change.json"])
def test_a_damaged_result_is_a_row_that_says_so(run, known, name, content):
    path = run / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    page = known.get("/")
    assert page.status_code == 200
    assert f"{path.name} is damaged" in page.text
    assert f'href="/show/{path.parent.name}"' not in page.text
    assert "/show/a" in page.text
    assert known.get("/show/a").status_code == 200
    assert known.get(f"/show/{path.parent.name}").status_code == 404


BAD_TABLES = {
    "long cell": "case,status,error\nx,failed," + "y" * 200_000 + "\n",
    "open quote": 'case,status,error\nx,failed,"' + "y" * 200_000,
    "too large": "case,status,error\n" + "x,done,\n" * 2_000_000,
}


@pytest.mark.parametrize("content", BAD_TABLES.values(), ids=BAD_TABLES)
def test_a_damaged_table_is_a_row_that_says_so(run, known, content):
    (run / "cases.csv").write_text(content)
    page = known.get("/")
    assert page.status_code == 200
    assert "cases.csv cannot be read" in page.text
    (run / "study" / "matrix.csv").write_text(content)
    page = known.get("/show/study?page=files")
    assert page.status_code == 200
    assert "matrix.csv cannot be read" in page.text


def test_texts_of_a_result_are_short_and_can_be_written(run, known):
    """A byte that is no UTF-8, in a cell, in a folder's and in a file's name; a name of a mile; a link to itself."""
    (run / "cases.csv").write_bytes(b"case,status,error\n\xff\xfe,failed," + b"z" * 100_000 + b"\nshort\n")
    os.mkdir(os.fsencode(run) + b"/\xe4\xff")  # noqa: PTH102 - pathlib takes no bytes
    Path(os.fsdecode(os.fsencode(run) + b"/\xe4\xff/report.json")).write_text("{}")
    Path(os.fsdecode(os.fsencode(run / "a") + b"/\xe4.csv")).write_text("x")
    (run / "a" / "circle.csv").symlink_to(run / "a" / "circle.csv")
    page = known.get("/")
    assert page.status_code == 200
    assert "z" * 1000 not in page.text
    assert "not UTF-8" in page.text
    page = known.get("/show/a?page=files")
    assert page.status_code == 200
    assert "circle" not in page.text


def test_a_folder_that_is_gone_is_said(run, known):
    shutil.rmtree(run)
    answer = known.get("/")
    assert answer.status_code == 404
    assert "is not a folder" in answer.text


@pytest.mark.parametrize("key", ["title", "status", "flags", "share_percent"])
def test_sorting_keeps_every_row(run, key):
    results = find_results(run)
    for down in (False, True):
        assert sorted(map(id, sort_results(results, key, down))) == sorted(map(id, results))


def test_an_empty_folder_and_a_file_are_one_line(tmp_path):
    with pytest.raises(InputError, match="holds no results"):
        find_results(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        find_results(tmp_path / "nothing")


@pytest.mark.enable_socket
def test_the_command_serves_on_loopback_and_stops_on_interrupt(run, start):
    process = start(
        [sys.executable, "-m", "pneumoscope", "view", str(run)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}", address)
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(), urllib.request.ProxyHandler({}))
        with opener.open(address) as answer:
            assert b"case-b" in answer.read()
            assert "server" not in answer.headers
        plain = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with pytest.raises(urllib.error.HTTPError, match="403") as refused:
            plain.open(address)
        refused.value.close()
        process.send_signal(signal.SIGINT)
        process.wait()
        assert "Traceback" not in (process.stderr.read() if process.stderr else "")
    finally:
        process.kill()
        process.communicate()


@contextmanager
def full_pipe() -> Iterator[int]:
    """The writing end of a pipe that nobody reads and that holds no more."""
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        with suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * 4096)
        os.set_blocking(writer, True)
        yield writer
    finally:
        os.close(reader)
        os.close(writer)


@pytest.fixture
def many_files() -> Iterator[None]:
    """Room for the sockets below in this process; a server it starts keeps the usual 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("a process may not open 4096 files here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def usual_limit() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


@pytest.mark.enable_socket
def test_half_open_connections_are_closed_and_stop_nobody(run, many_files):
    with full_pipe() as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "pneumoscope", "view", str(run)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            preexec_fn=usual_limit,
        )
        idle: list[socket.socket] = []
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            port = int(address.split(":")[2].split("/")[0])
            opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(), urllib.request.ProxyHandler({}))
            for number in range(1200):
                idle.append(socket.create_connection(("127.0.0.1", port)))
                with suppress(ConnectionError):  # closed already: too many ask for nothing
                    idle[-1].sendall((b"", b"GET / HTTP/1.1\r\nHost: x\r\n", b"GET", b"\0\0\r\n\r\n")[number % 4])
            with opener.open(address) as answer:
                assert b"case-b" in answer.read()
            for asked in (b"", b"GET / HTTP/1.1\r\nHost: x\r\n"):  # few enough: only the time limit closes these
                idle.append(socket.create_connection(("127.0.0.1", port)))
                idle[-1].sendall(asked)
            deadline = time.monotonic() + 120
            for connection in idle:
                connection.settimeout(max(0.1, deadline - time.monotonic()))
                with suppress(ConnectionError):
                    while connection.recv(4096):
                        pass
            with opener.open(address.split("?")[0]) as answer:
                assert b"case-b" in answer.read()
        finally:
            for connection in idle:
                connection.close()
            process.kill()
            process.communicate()
