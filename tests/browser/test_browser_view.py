"""`view.html` in a real browser: what a reader sees, by its pixels. DNS is blocked and nothing may be asked for."""

from __future__ import annotations

import numpy as np
import pytest

from pneumoscope.geometry import Grid
from pneumoscope.reports.view import CHANGE_LOOKS, Table, ViewScan, write_case_view, write_change_view
from pneumoscope.severity.measure import measure
from pneumoscope.surfaces.files import LOOKS
from pneumoscope.volume import INFILTRATE_LABEL, LUNG_LABELS, Mask, Volume

pytestmark = pytest.mark.allow_hosts(["127.0.0.1", "localhost", "::1"])

SHAPE = (50, 40, 30)
HU = -600.0
SPOT = (slice(38, 44), slice(28, 34), slice(20, 26))
"""Infiltrate high in the patient's right lung, in front: (i, j, k) grow to the right, the front, the head."""
GRIDS = {
    "upright": Grid.from_spacing(SHAPE, (3, 3, 5), (-75.0, -60.0, 100.0)),
    "tilted": Grid(SHAPE, [[2.96, -0.5, 0, -75], [0.5, 2.96, 0, -60], [0, 0, 5, 100], [0, 0, 0, 1]]),
}
ORANGE = [int(LOOKS["infiltrate"].colour[n : n + 2], 16) for n in (1, 3, 5)]


def made_scan(grid, title="a case", *, truth=True, spot=SPOT):
    """Grey of one value with a bright block; two lungs; the reference lies two voxels nearer to the front."""
    hu = np.full(SHAPE, HU, np.float32)
    hu[4:8, 4:8, 2:6] = 400.0
    lungs, found, drawn = (np.zeros(SHAPE, np.uint8) for _ in range(3))
    lungs[28:47, 5:36, 4:28], lungs[3:22, 5:36, 4:28] = 1, 2
    found[spot] = 1
    drawn[spot[0], spot[1].start + 2 : spot[1].stop + 2, spot[2]] = 1
    volume = Volume(hu, grid, grid, case=title)
    masks = [Mask(lungs, grid, LUNG_LABELS), Mask(found, grid, INFILTRATE_LABEL)]
    masks.append(Mask(drawn, grid, INFILTRATE_LABEL) if truth else None)
    return ViewScan(title, volume, *masks)


def write_one(folder, grid, title="a case", **more):
    scan = made_scan(grid, title, **more)
    write_case_view(folder / "view.html", scan, measure(scan.volume, scan.lungs, scan.infiltrate))
    return folder / "view.html"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    return {name: write_one(tmp_path_factory.mktemp(name), grid) for name, grid in GRIDS.items()}


@pytest.fixture
def page(browser_without_gl, pages):
    """Slices need no WebGL, and open quicker without."""
    return browser_without_gl.open(pages["upright"])


@pytest.fixture
def solid_page(browser, pages):
    return browser.open(pages["upright"])


def at(plane, voxel):
    """Where a voxel stands in a picture, as parts of its width and height: right and front to the left, head up."""
    across, down = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}[plane]
    return tuple((SHAPE[axis] - 0.5 - voxel[axis]) / SHAPE[axis] for axis in (across, down))


def show(page, voxel, **shown):
    """Put the cross on a voxel and hide the cross and all that is not asked for."""
    flags = {"lungs": False, "infiltrate": False, "truth": False, "agreement": False, "change": False, "cross": False}
    script = (
        "const p = pneumoscope; Object.assign(p.state.show, arguments[1]); p.state.cursor = arguments[0]; p.draw();"
    )
    page.run(script, list(voxel), {**flags, **shown})


def grey(hu, low, high):
    return round(255 * min(1, max(0, (hu - low) / (high - low))))


def test_it_opens_offline_asks_for_nothing_and_does_not_complain(solid_page):
    page = solid_page
    asked = [url for url in page.requests() if not url.startswith(("file:", "data:", "blob:"))]
    assert asked == []
    assert page.complaints() == []
    assert page.run("return document.title") == "a case"
    text = page.run("return document.body.innerText")
    assert "not a medical device" in text
    assert "own 3 × 3 × 5 mm" in text


def test_what_it_forbids_is_forbidden(page):
    ran = page.driver.execute_async_script("""
        const done = arguments[0], bad = document.createElement("script");
        bad.textContent = "window.ran = true";
        document.body.append(bad);
        fetch("data:text/plain,x").then(() => done("fetched"), () => done(window.ran ? "ran" : "refused"));
    """)
    assert ran == "refused"
    assert any("Content Security Policy" in line for line in page.complaints())


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_the_lesion_stands_where_radiologists_expect_it(browser_without_gl, pages, name, plane):
    page = browser_without_gl.open(pages[name])
    voxel = (41, 31, 23)
    show(page, voxel, infiltrate=True)
    base = grey(HU, -1350, 150)
    over = [round(0.4 * colour + 0.6 * base) for colour in ORANGE]
    x, y = at(plane, voxel)
    assert x < 0.5  # the patient's right, and the front, are on the left of the picture
    assert y < 0.5  # the front, and the head, are up
    np.testing.assert_allclose(page.pixel(f"{plane}-0", x, y), over, atol=3)
    np.testing.assert_allclose(page.pixel(f"{plane}-0", 1 - x, y), [base] * 3, atol=2)
    show(page, voxel)
    np.testing.assert_allclose(page.pixel(f"{plane}-0", x, y), [base] * 3, atol=2)


def test_the_bright_corner_is_low_left_and_behind(page):
    """HU of 400 at i, j, k of 4 to 8, 4 to 8, 2 to 6: the patient's left, back and feet."""
    voxel = (6, 6, 4)
    show(page, voxel)
    for plane in ("axial", "coronal", "sagittal"):
        x, y = at(plane, voxel)
        assert min(x, y) > 0.5
        assert page.pixel(f"{plane}-0", x, y) == (255, 255, 255)
    assert "about 400 HU" in page.element("readout").text
    assert "x −57, y −42, z 120 mm" in page.element("readout").text


def test_windows_by_button_by_key_and_by_number(page):
    voxel = (25, 20, 15)
    show(page, voxel)
    x, y = at("axial", voxel)
    expected = {2: (-160, 240), 4: (-970, -150), 5: (-700, -450), 1: (-1350, 150)}
    for key, (low, high) in expected.items():
        page.press("axial-0", str(key))
        np.testing.assert_allclose(page.pixel("axial-0", x, y), [grey(HU, low, high)] * 3, atol=2)
        pressed = page.run(
            "return [...document.querySelectorAll('[data-window][aria-pressed=true]')].map(b => b.dataset.window)"
        )
        assert pressed == [str(key - 1)]
    page.driver.find_element("css selector", "[data-window='4']").click()
    np.testing.assert_allclose(page.pixel("axial-0", x, y), [grey(HU, -700, -450)] * 3, atol=2)
    page.run("const w = document.getElementById('width'); w.value = 400; w.dispatchEvent(new Event('change'))")
    np.testing.assert_allclose(page.pixel("axial-0", x, y), [grey(HU, -775, -375)] * 3, atol=2)


def test_leafing_by_key_slider_and_wheel(page):
    start = page.cursor()
    assert start[2] in range(20, 26)  # the slice with most infiltrate
    page.press("axial-0", "\ue013")  # up
    assert page.cursor()[2] == start[2] + 1
    page.press("axial-0", "\ue00f")  # page down
    assert page.cursor()[2] == start[2] - 9
    page.press("axial-0", "\ue011")  # home
    assert page.cursor()[2] == 0
    page.press("axial-0", "\ue010")  # end
    assert page.cursor()[2] == SHAPE[2] - 1
    assert "slice 30 of 30" in page.element("axial-0").get_attribute("aria-label")
    page.press("sagittal-0", "\ue011")
    assert page.cursor()[0] == 0
    slider = page.driver.find_element("css selector", "[aria-label='Axial slice']")
    page.run("arguments[0].value = 23; arguments[0].dispatchEvent(new Event('input'))", slider)
    assert page.cursor()[2] == 23
    show(page, page.cursor(), infiltrate=True)
    page.run("document.getElementById('axial-0').dispatchEvent(new WheelEvent('wheel', {deltaY: 5, cancelable: true}))")
    assert page.cursor()[2] == 22
    lesion = page.pixel("axial-0", *at("axial", (41, 31, 22)))
    page.press("axial-0", "\ue011")
    assert page.pixel("axial-0", *at("axial", (41, 31, 0))) != lesion


def test_a_click_puts_the_cross_there(page):
    from selenium.webdriver.common.action_chains import ActionChains

    x, y = at("axial", (41, 31, 0))
    canvas = page.element("axial-0")
    size = canvas.size
    place = round((x - 0.5) * size["width"]), round((y - 0.5) * size["height"])
    ActionChains(page.driver).move_to_element_with_offset(canvas, *place).click().perform()
    page.settle()
    assert page.cursor()[:2] == [41, 31]
    assert "right lung, infiltrate" in page.element("readout").text


def test_keys_turn_overlays_on_and_off(page):
    voxel = (41, 29, 23)
    show(page, voxel)
    x, y = at("axial", voxel)
    bare = page.pixel("axial-0", x, y)
    for key, box in (("i", "infiltrate"), ("l", "lungs"), ("t", "truth"), ("a", "agreement"), ("x", "cross")):
        before = page.element(f"show-{box}").is_selected()
        page.press("axial-0", key)
        assert page.element(f"show-{box}").is_selected() != before
    page.run("for (const b of ['infiltrate', 'agreement']) { const e = document.getElementById('show-' + b);"
             "e.checked = b === 'infiltrate'; e.dispatchEvent(new Event('change')); }")  # fmt: skip
    tinted = page.pixel("axial-0", x, y)
    assert tinted != bare
    page.press("axial-0", "]", "]", "]", "]", "]", "]")
    np.testing.assert_allclose(page.pixel("axial-0", x, y), ORANGE, atol=3)


def test_the_reference_against_what_was_found(page):
    show(page, (41, 31, 23), agreement=True)
    page.run("pneumoscope.state.opacity = 1; pneumoscope.draw()")
    colours = {28: "#ff4fd8", 31: LOOKS["infiltrate"].colour, 35: LOOKS["truth"].colour}  # found, both, reference
    for j, colour in colours.items():
        wanted = [int(colour[n : n + 2], 16) for n in (1, 3, 5)]
        np.testing.assert_allclose(page.pixel("axial-0", *at("axial", (41, j, 23))), wanted, atol=2)


def lit(page, name, kind):
    """Mean column and row (0 to 1) and count of the pixels of a colour in a picture."""
    width, height, flat = page.pixels(name)
    picture = np.array(flat).reshape(height, width, 4)[..., :3].astype(int)
    red, green, blue = (picture[..., n] for n in range(3))
    chosen = {
        "orange": (red > 110) & (red > 1.3 * green) & (red > 1.6 * blue),
        "blue": (blue > 50) & (blue > 1.3 * red) & (blue > green),
        "green": (green > 50) & (green > 1.3 * red) & (green > 1.2 * blue),
    }[kind]
    rows, columns = np.nonzero(chosen)
    return (columns.mean() / width, rows.mean() / height, len(rows)) if len(rows) else (None, None, 0)


def steer(page, name):
    page.run("[...document.querySelectorAll('.steer button')].find(b => b.textContent === arguments[0]).click()", name)
    page.settle()


def test_the_surfaces_stand_upright_and_turn(solid_page):
    page = solid_page
    show(page, page.cursor(), lungs=True, infiltrate=True)
    steer(page, "Front")
    (right, _, count), (left, _, _) = lit(page, "space-0", "blue"), lit(page, "space-0", "green")
    assert count > 100
    assert right < 0.5 < left  # looked in the face, the patient's right lung is on the left
    show(page, page.cursor(), infiltrate=True)
    x, y, count = lit(page, "space-0", "orange")
    assert count > 10
    assert x < 0.5
    assert y < 0.5
    steer(page, "Back")
    assert lit(page, "space-0", "orange")[0] > 0.5
    steer(page, "Right")
    assert lit(page, "space-0", "orange")[0] > 0.5  # seen from the patient's right, the front is on the right
    assert page.run("return document.querySelector('.stage .e').textContent") == "A"
    page.press("space-0", "\ue012", "\ue012")
    assert page.run("return pneumoscope.state.camera.yaw") == pytest.approx(np.pi / 2 - 0.3)
    before = lit(page, "space-0", "orange")[2]
    page.press("space-0", "+", "+", "+")
    assert lit(page, "space-0", "orange")[2] > 1.3 * before
    page.press("space-0", "i")
    assert lit(page, "space-0", "orange")[2] == 0
    assert page.complaints() == []


@pytest.mark.slow
def test_dragging_turns_the_surfaces(solid_page):
    page = solid_page
    from selenium.webdriver.common.action_chains import ActionChains

    yaw = page.run("return pneumoscope.state.camera.yaw")
    ActionChains(page.driver).click_and_hold(page.element("space-0")).move_by_offset(60, 0).release().perform()
    page.settle()
    assert page.run("return pneumoscope.state.camera.yaw") > yaw + 0.3


@pytest.mark.slow
def test_on_a_phone(browser, pages):
    page = browser.open(pages["upright"], width=390, height=844, phone=True)
    assert page.run("return document.documentElement.scrollWidth") <= 390
    wide = page.run("return [...document.querySelectorAll('canvas')].map(c => c.getBoundingClientRect().width)")
    assert len(wide) == 4
    assert min(wide) > 300
    assert page.run("return [...document.querySelectorAll('.steer button')].every(b => b.offsetHeight >= 28)")
    page.run("document.getElementById('axial-0').scrollIntoView({block: 'center'})")
    box = page.run(
        "const b = document.getElementById('axial-0').getBoundingClientRect(); return [b.x, b.y, b.width, b.height]"
    )
    x, y = at("axial", (41, 31, 0))
    point = {"x": box[0] + x * box[2], "y": box[1] + y * box[3]}
    page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [point]})
    page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.settle()
    assert page.cursor()[:2] == [41, 31]


@pytest.mark.slow
def test_keyboard_alone_reaches_everything_and_sees_where_it_is(solid_page):
    page = solid_page
    reached = []
    for _ in range(60):
        page.driver.switch_to.active_element.send_keys("\ue004")
        name, outline = page.run(
            "const e = document.activeElement; if (e === document.body) return ['', ''];"
            "return [e.id || e.textContent || e.ariaLabel, getComputedStyle(e).outlineStyle]"
        )
        if not name:
            break
        assert outline != "none", name
        reached.append(name)
    for wanted in ("Lung", "show-infiltrate", "axial-0", "coronal-0", "sagittal-0", "space-0", "Front", "opacity"):
        assert wanted in reached
    unnamed = page.run(
        "return [...document.querySelectorAll('canvas, input, button')]"
        ".filter(e => !(e.ariaLabel || e.textContent || e.labels?.length)).map(e => e.outerHTML)"
    )
    assert unnamed == []


def test_without_webgl_the_slices_are_there_and_a_line_says_why_the_rest_is_not(browser_without_gl, pages):
    page = browser_without_gl.open(pages["upright"])
    assert "no WebGL2" in page.run("return document.querySelector('.message').textContent")
    show(page, (41, 31, 23))
    np.testing.assert_allclose(page.pixel("axial-0", 0.5, 0.5), [grey(HU, -1350, 150)] * 3, atol=2)


def test_two_dates_side_by_side(browser, tmp_path):
    grid = GRIDS["upright"]
    later = (SPOT[0], slice(31, 37), SPOT[2])
    scans = made_scan(grid, "baseline", truth=False), made_scan(grid, "follow-up", truth=False, spot=later)
    change = np.zeros(SHAPE, np.uint8)
    change[38:44, 34:37, 20:26], change[38:44, 28:31, 20:26], change[38:44, 31:34, 20:26] = 1, 2, 3
    numbers = Table(("", "Baseline", "Follow-up"), (("Infiltrate", "9.7 ml", "9.7 ml"),))
    write_change_view(
        tmp_path / "view.html", *scans, Mask(change, grid, {1: "new", 2: "resolved", 3: "persistent"}), numbers
    )
    page = browser.open(tmp_path / "view.html")
    assert page.complaints() == []
    assert page.run("return document.querySelectorAll('canvas').length") == 8
    assert "9.7 ml" in page.run("return document.querySelector('table').innerText")
    show(page, (41, 31, 23), change=True)
    page.run("pneumoscope.state.opacity = 1; pneumoscope.draw()")
    for j, label in ((35, 1), (29, 2), (32, 3)):
        wanted = [int(CHANGE_LOOKS[label][1][n : n + 2], 16) for n in (1, 3, 5)]
        for number in (0, 1):
            np.testing.assert_allclose(page.pixel(f"axial-{number}", *at("axial", (41, j, 23))), wanted, atol=2)
    show(page, (41, 31, 23), infiltrate=True)
    x, y = at("axial", (41, 35, 23))
    assert page.pixel("axial-0", x, y) != page.pixel("axial-1", x, y)
    page.press("axial-1", "\ue011")
    assert page.cursor()[2] == 0
    assert "slice 1 of 30" in page.element("axial-0").get_attribute("aria-label")


def test_names_from_outside_stay_text(browser_without_gl, tmp_path):
    title = "</script><img src=x onerror=alert(1)>&amp;"
    page = browser_without_gl.open(write_one(tmp_path, GRIDS["upright"], title, truth=False))
    assert page.run("return document.querySelector('h1').textContent") == title
    assert page.complaints() == []


def test_nothing_marked(browser_without_gl, tmp_path):
    grid = GRIDS["upright"]
    volume = Volume(np.full(SHAPE, HU, np.float32), grid, grid)
    lungs, none = Mask.empty(grid, LUNG_LABELS), Mask.empty(grid, INFILTRATE_LABEL)
    write_case_view(tmp_path / "v.html", ViewScan("empty", volume, lungs, none), measure(volume, lungs, none))
    page = browser_without_gl.open(tmp_path / "v.html")
    assert "nothing is marked" in page.run("return document.querySelector('.stage').textContent")
    assert page.cursor() == [25, 20, 15]
    assert page.complaints() == []
