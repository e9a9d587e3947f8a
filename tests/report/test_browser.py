"""The report in a real browser, on a desk and on a phone, in light and in dark."""

import html
import json
import re
import shutil
import subprocess

import pytest
from test_report import SEEN, comparison, verdict, written

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")

# Looks into the report in a frame of the width of the window, and writes what it finds into its own title.
PROBE = """<!DOCTYPE html><title>waiting</title><body style="margin:0">
<iframe src="report.html" style="border:0;width:%dpx;height:4000px"></iframe>
<script>
document.querySelector("iframe").onload = (event) => {
  const page = event.target.contentDocument, root = page.documentElement, body = getComputedStyle(page.body);
  const all = (what) => [...page.querySelectorAll(what)];
  const sizes = all("svg[role=img]").map((svg) => svg.getBoundingClientRect());
  const beyond = all("body *").filter((one) => !one.closest(".wide") && !one.closest("svg") &&
    one.getBoundingClientRect().right > root.clientWidth + 1).map((one) => one.tagName + " " + one.textContent.slice(0, 40));
  document.title = JSON.stringify({
    headings: all("h1, h2, h3").map((one) => one.textContent), broken: all("img").filter((one) => !one.naturalWidth).length,
    images: all("img").length, unnamed: all("svg[role=img]").filter((one) => !one.querySelector("title")).length,
    figures: sizes.length, smallest: Math.min(...sizes.map((one) => Math.min(one.width, one.height))),
    beyond: beyond, scrolls: root.scrollWidth - root.clientWidth,
    loaded: event.target.contentWindow.performance.getEntriesByType("resource").map((one) => one.name)
      .filter((name) => !name.startsWith("data:")), ink: body.color, paper: body.backgroundColor, text: page.body.innerText,
  });
};
</script>"""


def opened(folder, width, *flags):
    (folder / "probe.html").write_text(PROBE % width, encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", *flags]
    command += [
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width},900",
        "--virtual-time-budget=5000",
        "--dump-dom",
    ]
    page = subprocess.run([*command, f"file://{folder / 'probe.html'}"], capture_output=True, text=True, timeout=120).stdout
    found = re.search(r"<title>(.*?)</title>", page, flags=re.S)
    assert found and found[1] != "waiting", page[:500]
    return json.loads(html.unescape(found[1]))


def contrast(first, second):
    """Ratio of the luminances of two CSS colours (WCAG 2.1)."""

    def luminance(colour):
        shares = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_nothing_is_missing_on_the_page(tmp_path, width):
    written(tmp_path, [*comparison(0.85), verdict("entropic", SEEN, "flag")])
    seen = opened(tmp_path, width)
    assert seen["loaded"] == [] and seen["broken"] == 0
    assert (seen["images"], seen["figures"], seen["unnamed"]) == (72, 7, 0)
    assert seen["smallest"] > 100
    assert seen["beyond"] == [] and seen["scrolls"] <= 0
    for heading in (
        "Can this be believed?",
        "Where the information goes, PyTorch",
        "What could not be made equal",
        "How to reproduce",
    ):
        assert heading in seen["headings"]
    for words in (SEEN, "Entropic is ahead of MadryPGD", "[80.0, 90.0]", "Bands and bars: 95 % intervals"):
        assert words in seen["text"]


def test_text_stands_out_in_light_and_in_dark(tmp_path):
    written(tmp_path, comparison())
    light = opened(tmp_path, 1100, "--blink-settings=preferredColorScheme=1")
    dark = opened(tmp_path, 1100, "--blink-settings=preferredColorScheme=0")
    assert light["paper"] == "rgb(255, 255, 255)" and dark["paper"] != light["paper"]
    for seen in (light, dark):
        assert contrast(seen["ink"], seen["paper"]) > 7
