"""The served viewer: what it shows, and whom it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from pneumoscope.errors import InputError
from pneumoscope.viewer.app import make_app
from pneumoscope.viewer.contents import find_results, sort_results
from pneumoscope.viewer.guard import Guard

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
def guard() -> Guard:
    return Guard((HOST, "localhost:8765"), "pneumoscope-8765")


@pytest.fixture
def stranger(run: Path, guard: Guard) -> TestClient:
    return TestClient(make_app(run, guard), base_url=f"http://{HOST}")


@pytest.fixture
def known(stranger: TestClient, guard: Guard) -> TestClient:
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
        {"host": "evil.example:8765"},
        {"host": "127.0.0.1:1"},
        {"host": "127.0.0.1"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
    ids=str,
)
def test_other_pages_and_names_are_refused(known, headers):
    assert known.get("/").status_code == 200
    assert known.get("/", headers=headers).status_code == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_sent(known, method):
    assert known.request(method, "/").status_code == 405


@pytest.mark.parametrize(
    "path",
    [
        "/file/../secret.csv",
        "/file/%2e%2e/secret.csv",
        "/file/a/..%2f..%2fsecret.csv",
        "/file//etc/passwd",
        "/file/%2fetc%2fpasswd",
        "/file/a/link.csv",
        "/file/a/.hidden.csv",
        "/file/a/model.safetensors",
        "/file/a",
        "/file/a/%00",
        "/file/nothing.csv",
        "/show/%2e%2e",
        "/show/nothing",
    ],
)
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
    assert "/file/a/lungs.nii.gz" in page
    assert "link.csv" not in page
    assert "hidden" not in page
    assert "/show/b" in page, "the next case"


def test_a_study_shows_its_matrix(known):
    page = known.get("/show/study").text
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


def test_damaged_reports_do_not_stop_the_table(run):
    (run / "a" / "report.json").write_text('{"severity": {"total": {"share_percent": "NaN"}, "states": 7}}')
    (run / "b" / "report.json").write_text("[" * 100_000)
    found = {r.place: r for r in find_results(run)}
    assert found["a"].numbers["share_percent"] is None
    assert found["b"].title == "b"


@pytest.mark.parametrize("key", ["title", "status", "flags", "share_percent"])
def test_sorting_keeps_every_row(run, key):
    results = find_results(run)
    for down in (False, True):
        assert sorted(map(id, sort_results(results, key, down))) == sorted(map(id, results))


def test_an_empty_folder_and_a_file_are_one_line(tmp_path):
    with pytest.raises(InputError, match="holds no results"):
        find_results(tmp_path)
    with pytest.raises(InputError, match="is no folder"):
        find_results(tmp_path / "nothing")


@pytest.mark.enable_socket
def test_the_command_serves_on_loopback_and_stops_on_interrupt(run):
    process = subprocess.Popen(
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
        with opener.open(address, timeout=20) as answer:
            assert b"case-b" in answer.read()
            assert "server" not in answer.headers
        plain = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with pytest.raises(urllib.error.HTTPError, match="403") as refused:
            plain.open(address, timeout=20)
        refused.value.close()
        process.send_signal(signal.SIGINT)
        process.wait(20)
        assert "Traceback" not in (process.stderr.read() if process.stderr else "")
    finally:
        process.kill()
        process.communicate()
