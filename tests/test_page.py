"""The live page: what it shows, to whom, and in a real browser."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import re
import signal
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trustme
from pyspark import InheritableThread
from pyspark.sql import SparkSession

from sparkdist import Dataset, Logistic
from sparkdist.blocks import Block
from sparkdist.consistency import asp
from sparkdist.progress import TrainingProgress
from sparkdist.server import page, timeline
from sparkdist.server.timeline import LIMIT, Timeline
from sparkdist.spark.training.deepdist import DeepDist
from sparkdist.spark.training.model_server import ModelServer
from sparkdist.updaters import adagrad

# As modules: a test that is imported by name would be collected here once more.
from tests import test_app, test_house, test_progress, test_store
from tests.browser import Browser
from tests.served import TOKEN, Served, count_to

FOLDER = Path(page.__file__).parent
FILES = {path.name: path.read_text() for path in FOLDER.iterdir() if path.suffix not in ("", ".py")}
READING = page.reading_token(TOKEN)


# --- the timeline -----------------------------------------------------------------------------


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that a test sets."""
    clock = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(timeline, "time", SimpleNamespace(monotonic=lambda: clock.seconds))
    return clock


def run_for(line: Timeline, now: SimpleNamespace, updates: int, gap: float, start: int = 0) -> None:
    """Push by push: 64 examples each, losses that differ from one to the next."""
    for applied in range(start + 1, start + updates + 1):
        now.seconds += gap
        line.add(applied, 64 * applied, applied**0.5, 64.0 * applied)


@pytest.mark.parametrize(("updates", "gap"), [(10, 0.001), (300, 1.0), (70_000, 0.003), (5000, 60)])
def test_a_timeline_is_short_even_and_loses_no_loss(
    now: SimpleNamespace, updates: int, gap: float
) -> None:
    line = Timeline()
    run_for(line, now, updates, gap)
    points, whole = line.points, updates * gap
    assert len(points) <= LIMIT
    # Every point is a sum that was: only which ones are left is the timeline's choice.
    assert all(p[1:] == (p[1], 64 * p[1], p[1] ** 0.5, 64.0 * p[1]) for p in points)
    # At the last thinning, not before half of the time, LIMIT points became half as many.
    widest = max(2 * whole / LIMIT, 0.05) + gap + 1e-3
    times = [0.0, *(point[0] for point in points), whole]
    assert max(b - a for a, b in zip(times, times[1:], strict=False)) <= widest


def test_a_timeline_goes_on_where_another_one_ended(now: SimpleNamespace) -> None:
    before = Timeline()
    run_for(before, now, 1000, 0.1)
    saved = json.loads(json.dumps(before.saved))
    assert len(saved) <= 64
    now.seconds += 3600  # while there was no server
    after = Timeline(saved)
    assert set(after.points) <= set(before.points) and after.points[-1] == before.points[-1]
    assert after.seconds == pytest.approx(before.points[-1][0])
    run_for(after, now, 10_000, 0.1, start=1000)
    times = [point[0] for point in after.points]
    assert times == sorted(times) and times[-1] == pytest.approx(1100, abs=10)
    assert len(times) <= LIMIT


def test_r11_a_server_that_was_started_again_has_the_timeline_of_its_run(tmp_path: Path) -> None:
    store = test_store.make_store(2, folder=tmp_path, every_update=True)
    for clock in range(3):
        time.sleep(0.06)  # more than the step between two points
        push = test_store.a_push(store, 0, clock, [1.0, 0.0], examples=5, loss=2.0, weight=4.0)
        store.push(test_store.RUN, push)
    again = test_store.restored(tmp_path, 2)
    points = again.status(timeline=True)["timeline"]
    assert [point[1:] for point in points] == [(n, 5 * n, 2.0 * n, 4.0 * n) for n in (1, 2, 3)]
    assert points == store.status(timeline=True)["timeline"]
    store.begin("another", 1)
    assert store.status(timeline=True)["timeline"] == []
    assert "timeline" not in store.status()


# --- who sees what ----------------------------------------------------------------------------


def test_the_reading_token_is_the_hmac_of_rfc_2104() -> None:
    # H((K xor opad) || H((K xor ipad) || text)), with K filled up with zeros to 64 bytes.
    key = TOKEN.encode().ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in key) + b"sparkdist: read").digest()
    outer = hashlib.sha256(bytes(b ^ 0x5C for b in key) + inner).hexdigest()
    assert page.reading_token(TOKEN) == outer


def test_r37_the_reading_token_opens_the_books_and_nothing_else() -> None:
    server = test_app.serve()
    before = test_app.state_of(server)
    headers = {"Host": test_app.HOST, "Content-Length": "100", "Content-Type": "text/plain"}
    headers["Authorization"] = f"Bearer {page.reading_token(test_app.TOKEN)}"
    opened = set()
    for method, path in test_app.ROUTES:
        answer = test_app.ask_unread(server, method, path, headers)
        assert answer.status_code in (200, 401)
        if answer.status_code == 200:
            opened.add(path)
    assert opened == {"/healthz", "/v1/status", "/", "/page.css", "/page.js", "/icon.svg"}
    assert test_app.state_of(server) == before


@pytest.mark.parametrize("path", sorted(page.OPEN))
def test_the_files_need_no_token_and_have_strict_headers(path: str) -> None:
    server = test_app.serve()
    answer = server.ask("GET", path, drop=["Authorization"])
    assert answer.status_code == 200 and TOKEN.encode() not in answer.data
    told = answer.headers
    policy = dict(part.strip().split(" ", 1) for part in told["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert told["Referrer-Policy"] == "no-referrer" and told["Cache-Control"] == "no-store"
    assert told["X-Content-Type-Options"] == "nosniff"
    assert told["Cross-Origin-Resource-Policy"] == "same-origin"


def test_the_page_needs_nothing_from_elsewhere_and_has_no_code_in_its_markup() -> None:
    assert set(FILES) == {"index.html", "page.css", "page.js", "icon.svg"}
    for name, text in FILES.items():
        outside = set(re.findall(r"(?:https?:)?//[\w.]+\.\w+[\w./]*", text))
        assert outside <= {"http://www.w3.org/2000/svg"}, name  # a name, which is never fetched
        assert not re.search(r"@import|url\(|innerHTML|eval\(|document\.write", text), name
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", FILES["index.html"])
    assert re.findall(r"<script[^>]*>", FILES["index.html"]) == ['<script src="page.js" defer>']
    # Without a name the browser itself can send the token nowhere.
    assert "name=" not in re.sub(r"<meta[^>]*>", "", FILES["index.html"])


def test_the_files_are_in_the_package() -> None:
    project = test_house.tomllib.loads((test_house.ROOT / "pyproject.toml").read_text())
    shipped = project["tool"]["setuptools"]["package-data"]["sparkdist"]
    for name in FILES:
        assert any(fnmatch(f"server/page/{name}", pattern) for pattern in shipped), name


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb: https://www.w3.org/TR/WCAG22/#dfn-relative-luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: str, b: str) -> float:
    """Contrast of two colours: https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio."""
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def test_the_contrast_of_every_text_is_aa_in_both_lights() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # WebAIM's example
    light, dark = re.findall(r":root \{(.*?)\}", FILES["page.css"], re.S)
    for theme in (light, dark):
        colours = dict(re.findall(r"--(\w+): (#\w{6});", theme))
        for ink in ("ink", "soft", "accent", "alarm"):
            for ground in ("paper", "sheet"):
                assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)


@pytest.mark.parametrize(
    ("host", "tls", "expected"),
    [
        ("10.0.0.7", False, "http://10.0.0.7:4711/#token="),
        ("::1", True, "https://[::1]:4711/#token="),
    ],
)
def test_the_address_carries_the_reading_token_behind_the_fragment(
    host: str, tls: bool, expected: str
) -> None:
    assert page.address(host, 4711, TOKEN, tls=tls) == expected + READING
    assert page.address(host, 4711, tls=tls) == expected.removesuffix("#token=")


# --- the real server process ------------------------------------------------------------------


def get(served: Served, path: str, token: str = "", trusted: str = "") -> tuple[int, bytes]:
    """Ask the real server, with TLS if there is something to trust."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    if trusted:
        context = ssl.create_default_context(cadata=trusted)
        connection = http.client.HTTPSConnection(
            "127.0.0.1", served.port, timeout=10, context=context
        )
    try:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.process
def test_r39_no_token_is_in_the_log_of_the_server_or_in_its_arguments() -> None:
    with Served(None) as served, served.client() as client:
        count_to(client, 3)
        for token in (TOKEN, READING, "wrong", ""):
            for path in ("/", "/page.js", "/v1/status", "/v1/model", f"/?token={READING}"):
                status, body = get(served, path, token)
                shell, books = not path.startswith("/v1"), path == "/v1/status"
                opened = shell or token == TOKEN or (books and token == READING)
                assert status == (200 if opened else 401), (path, token)
                assert TOKEN.encode() not in body and READING.encode() not in body
        said = served.supervisor._log.read_text()
        arguments = Path(f"/proc/{served.pid}/cmdline").read_text()
        assert "sparkdist.server.process" in arguments
        for token in (TOKEN, READING):
            assert token not in said + arguments


@pytest.mark.process
def test_r47_the_page_goes_through_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    trusted = authority.cert_pem.bytes().decode()
    with Served(None, certificate=certificate, key=key, trusted=trusted) as served:
        assert get(served, "/", trusted=trusted) == (200, FILES["index.html"].encode())
        status, body = get(served, "/v1/status", READING, trusted)
        assert status == 200 and json.loads(body)["version"] == 0


# --- in a browser -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go: SPARKDIST_PICTURES names a folder for who wants to see them."""
    named = os.environ.get("SPARKDIST_PICTURES")
    return Path(named) if named else tmp_path_factory.mktemp("pictures")


def fits(browser: Browser) -> bool:
    """Whether nothing of the page is wider than the screen."""
    return browser.run("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.process
def test_the_page_asks_for_the_token_and_says_how_the_server_is(
    browser: Browser, pictures: Path
) -> None:
    with Served(None, workers=300, size=50) as served, served.client() as client:
        browser.look(1280, 900, prefers_color_scheme="light")
        browser.open(f"http://127.0.0.1:{served.port}/")
        browser.wait_for("document.activeElement.id === 'token'")
        assert browser.text("state") == "Token needed"
        browser.picture(pictures / "token.png")
        browser.type("wrong")
        browser.wait_for("document.getElementById('notice').innerText.includes('not the one')")
        assert not browser.run("document.getElementById('token').value")
        browser.type(page.address("127.0.0.1", served.port, TOKEN))
        browser.wait_for("document.getElementById('state').innerText === 'Waiting for workers'")

        for partition in range(300):
            client.join(partition)
        for partition in (7, 250):
            count_to(client, partition // 5, 50, partition=partition)
        browser.wait_for("document.getElementById('f-version').innerText === '51'")
        assert browser.text("state") == "Training"
        assert browser.text("workers-note") == "the 200 slowest of 300"
        rows = browser.run("Array.from(document.getElementById('workers').rows, r => r.innerText)")
        # 298 workers are at 0, 50 behind the fastest: 200 of them are shown, in their order.
        assert [row.split()[:3] for row in rows[:8]] == [
            [str(partition), "0", "50"] for partition in (*range(7), 8)
        ]
        assert len(rows) == 200 and fits(browser)

        os.kill(served.pid, signal.SIGKILL)  # without checkpoints it is not started again
        browser.wait_for("document.getElementById('state').innerText === 'No answer'")
        assert "No answer from the server since" in browser.text("notice")
        browser.picture(pictures / "no-answer.png")
    assert browser.run("location.href").endswith(f":{served.port}/")


@pytest.mark.process
def test_the_page_goes_on_with_a_server_that_is_started_again(
    browser: Browser, tmp_path: Path
) -> None:
    with Served(tmp_path, every_update=True) as served, served.client() as client:
        count_to(client, 5)
        browser.open(page.address("127.0.0.1", served.port, TOKEN))
        browser.wait_for("document.getElementById('f-version').innerText === '5'")
        os.kill(served.pid, signal.SIGKILL)
        count_to(client, 9)
        browser.wait_for("document.getElementById('f-version').innerText === '9'")
        assert "Started again" in browser.text("facts")
        assert browser.text("state") == "Training"
        client.leave(0)
        browser.wait_for("document.getElementById('state').innerText === 'Finished'")
    browser.wait_for("document.getElementById('state').innerText === 'Ended'")
    assert "These are the last numbers" in browser.text("notice")


class Run:
    """A run in a thread, which ends when it is told to."""

    def __init__(self, server: ModelServer, data: Dataset):
        self._over, self.status = False, dict[str, Any]()
        train = {"batch_size": 64, "epochs": 400, "callback": self.see, "progress": False}
        self._thread = InheritableThread(target=server.train, args=(data, Logistic()), kwargs=train)
        self._thread.start()

    def see(self, status: dict[str, Any]) -> None:
        self.status = status
        if self._over:
            raise StopIteration

    def end(self) -> None:
        self._over = True
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.mark.spark
def test_the_page_shows_a_real_run_that_moves(
    spark: SparkSession, a9a: Block, browser: Browser, pictures: Path
) -> None:
    data = Dataset.from_arrays(spark, a9a.X, a9a.y, n_partitions=2)
    with ModelServer(np.zeros(123), updater=adagrad(0.05), consistency=asp()) as server:
        run = Run(server, data)
        try:
            look_at(browser, server, pictures)
        finally:
            run.end()
        address, token = server.page.split("#token=")
        assert {url.removeprefix(address) for url in browser.asked} == {
            *("", "page.css", "page.js", "icon.svg", "v1/status")
        }
    sent = [(name.lower(), value) for headers in browser.sent for name, value in headers.items()]
    assert {value for name, value in sent if name == "authorization"} == {f"Bearer {token}"}
    assert token not in str([value for name, value in sent if name != "authorization"])
    assert [value for name, value in sent if name in ("referer", "origin", "cookie")] == []
    assert browser.complaints == []
    for theme in ("light", "dark", "phone"):
        assert (pictures / f"{theme}.png").stat().st_size > 20_000


def look_at(browser: Browser, server: ModelServer, pictures: Path) -> None:
    """Two looks, some seconds apart, and pictures of each kind of screen."""
    browser.look(1280, 900, prefers_color_scheme="light")
    browser.open(server.page)
    browser.wait_for("document.getElementById('state').innerText === 'Training'")
    browser.wait_for("document.querySelector('#loss .line') !== null")
    first = read_page(browser)
    time.sleep(float(os.environ.get("SPARKDIST_PICTURE_SECONDS", "4")))
    second = read_page(browser)
    assert second["version"] > first["version"] > 0
    assert second["examples"] > first["examples"] > 0
    assert second["line"] != first["line"]
    # The books, as the server's own status has them a moment later.
    assert second["version"] <= server.status()["version"]
    # log 2 is the loss of the zeros that it began with; A-L2 of the design has 0.3333.
    assert 0.30 < second["loss"] < np.log(2)
    assert second["rows"] == 2 and second["joined"] == "at work; 2 of 2 joined"
    assert "#" not in browser.run("location.href")
    browser.picture(pictures / "light.png")
    browser.look(1280, 900, prefers_color_scheme="dark", prefers_reduced_motion="reduce")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(15, 17, 19)"
    moving = "getComputedStyle(document.getElementById('state'), '::before').animationName"
    assert browser.run(moving) == "none"
    browser.picture(pictures / "dark.png")
    browser.look(390, 844, prefers_color_scheme="light")
    assert browser.run(moving) == "breathe"
    assert fits(browser)
    browser.picture(pictures / "phone.png")
    browser.look(360, 740, prefers_color_scheme="dark")
    assert fits(browser)
    browser.picture(pictures / "phone-dark.png")
    for role, name in named_parts(browser):
        assert name, role


def read_page(browser: Browser) -> dict[str, Any]:
    """What the page says, as numbers."""
    told = browser.run(
        """({version: document.getElementById('f-version').innerText,
             loss: document.getElementById('f-loss').innerText,
             examples: document.getElementById('rows').innerText.split(' ')[0],
             line: document.querySelector('#loss .line').getAttribute('d'),
             joined: document.getElementById('f-workers-note').innerText,
             rows: document.getElementById('workers').rows.length})"""
    )
    for name in ("version", "examples"):
        told[name] = int(told[name].replace(",", ""))
    return told | {"loss": float(told["loss"])}


def named_parts(browser: Browser) -> list[tuple[str, str]]:
    """Role and name of what a screen reader has to name, in the accessibility tree."""
    nodes = browser.ask("Accessibility.getFullAXTree")["nodes"]
    found = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"]
    ]
    roles = [role for role, _ in found]
    assert roles.count("columnheader") == 5 and roles.count("rowheader") == 2
    wanted = {"image", "table", "progressbar", "columnheader", "rowheader", "heading"}
    assert wanted <= set(roles) and "status" in roles
    return [(role, name) for role, name in found if role in wanted]


# --- how the driver tells ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "shown"), [(test_progress.Terminal, True), (io.StringIO, False)]
)
def test_the_address_is_shown_above_the_bar_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, stream: Callable[[], io.StringIO], shown: bool
) -> None:
    errors, output = stream(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    monkeypatch.setattr(sys, "stdout", output)
    with TrainingProgress(True, None, lambda: "http://127.0.0.1:4711/#token=abc"):
        pass
    assert ("live page http://127.0.0.1:4711/#token=abc\n" in errors.getvalue()) == shown
    assert output.getvalue() == ""


@pytest.mark.spark
def test_the_driver_logs_the_address_without_the_token(
    spark: SparkSession, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="sparkdist"), ModelServer(np.zeros(2)) as server:
        address, _, token = server.page.partition("#token=")
        assert len(token) == 64
        assert f"the live page of the model server is at {address}" in caplog.text
        assert token not in caplog.text and server._serving._token not in caplog.text


@pytest.mark.spark
@pytest.mark.parametrize("make", [lambda: ModelServer(np.zeros(2)), lambda: DeepDist(np.zeros(2))])
def test_a_notebook_shows_a_link_while_the_server_runs_and_none_after_it(
    spark: SparkSession, make: Callable[[], Any]
) -> None:
    server = make()
    assert "<a " not in server._repr_html_()
    with server:
        assert f'href="{server.page}"' in server._repr_html_()
        assert server._serving._token not in server._repr_html_() + server.page
        shown = [server._serving.page_once() for _ in range(3)]
        assert shown == [server.page, None, None]
    assert "<a " not in server._repr_html_()
