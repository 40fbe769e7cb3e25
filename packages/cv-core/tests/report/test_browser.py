"""The page in a real browser: what a reader sees, and what must not happen."""

import re
import subprocess

import pytest
from cv_core.report.html import render_html

pytestmark = pytest.mark.browser

EVIL = '<script>document.title = "owned"</script>"><img src=x onerror="document.title=\'owned\'">'


@pytest.fixture
def browse(chromium, tmp_path):
    """Open a page in headless Chromium: the DOM after all scripts, the log, and the requests."""

    def open_page(source):
        (tmp_path / "page.html").write_text(source)
        log = tmp_path / "net.json"
        done = subprocess.run(
            [
                chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                "--disable-background-networking", "--disable-component-update",
                "--disable-default-apps", "--disable-extensions", "--disable-sync",
                "--disable-dev-shm-usage", f"--user-data-dir={tmp_path / 'profile'}",
                "--enable-logging=stderr", f"--log-net-log={log}", "--dump-dom",
                (tmp_path / "page.html").as_uri(),
            ],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout, done.stderr, log.read_text(errors="replace")

    return open_page


def console_lines(log):
    return [line for line in log.splitlines() if ":CONSOLE" in line]


def requested(net_log):
    """Every web address that the browser asked for, its own start-up services left out."""
    found = re.findall(r'"url":"((?:https?|ftp|wss?)://[^"]+)"', net_log)
    own = ("google.com", "googleapis.com", "gvt1.com", "gstatic.com")
    hosts = [re.sub(r"^\w+://([^/:]+).*", r"\1", url) for url in found]
    return [host for host in hosts if not host.endswith(own)]


def test_reader_finds_table_verdicts_and_figures(browse, make_results):
    dom, log, net_log = browse(render_html(make_results()))
    assert "<title>ICCE: a loss for noisy labels: supported 2 of 6" in dom
    assert dom.count("<table") == 5  # four claims and the results
    assert len(re.findall(r'class="badge \w+"', dom)) == 6
    assert len(re.findall(r'<svg class="figure"[^>]*role="img"', dom)) == 5
    assert dom.count('<img src="data:image/png') == 10
    assert "0.8550 ± 0.0080" in dom
    assert console_lines(log) == []
    assert requested(net_log) == []
    assert "http" not in dom


def test_hostile_texts_do_nothing(browse, make_results):
    results = make_results()
    declared = results.declared.model_copy(
        update={"notes": [EVIL], "question": EVIL, "title": f"title {EVIL}", "reference": EVIL}
    )
    trials = [
        trial.model_copy(update={"error": EVIL}) if trial.status == "failed" else trial
        for trial in results.trials
    ]
    source = render_html(results.model_copy(update={"declared": declared, "trials": trials}))
    dom, log, net_log = browse(source)
    assert "<title>title &lt;script" in dom  # still the page's own
    assert "<script" not in dom
    assert "<img src=x" not in dom
    assert '<img src="x"' not in dom
    assert console_lines(log) == []
    assert requested(net_log) == []


def test_the_browser_test_would_notice(browse):
    """The same reading of the same logs finds an error and a request where there are some."""
    page = """<!doctype html><title>t</title>
    <script>document.title = "owned"; console.error("seen"); undefinedFunction()</script>
    <img src="http://127.0.0.1:9/picture.png">"""
    dom, log, net_log = browse(page)
    assert "<title>owned</title>" in dom
    assert len(console_lines(log)) >= 2
    assert "127.0.0.1" in requested(net_log)
