# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The page in Chromium: a video that plays while it is made, as a visitor sees it."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from helpers.browser import CHROMIUM, Page, opened
from helpers.tiny import make_tiny_pipeline

demo_module = pytest.importorskip("ultraflash_diffusers.demo.page")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]

PROMPT = "document.querySelector('textarea')"
PLAYER = "document.querySelector('#uf-text')"
STATUS = f"{PLAYER}.querySelector('[data-part=status]').textContent"
SHOWN = f"{PLAYER}.querySelector('video')"


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        page = demo_module.build_demo(make_tiny_pipeline(default_width=96, default_height=64))
        demo_module.launch_demo(page, prevent_thread_lock=True, quiet=True)
        yield page.local_url
        page.end()


@pytest.fixture
def page(url, tmp_path) -> Iterator[Page]:
    with opened(f"{url}?prompt=a+red+ball&endless=true&seed=7", tmp_path / "profile") as page:
        page.wait_for(f"window.ultraflash && {PLAYER} && {PROMPT}?.value === 'a red ball'")
        page.wait_for("document.querySelector('input[type=checkbox]').checked")
        yield page


def test_a_visitor_watches_a_video_while_it_is_made(page, url, tmp_path):
    page.press("Generate")
    page.wait_for(f"{SHOWN}.currentTime > 0.2")
    early, first = page.evaluate(f"{SHOWN}.currentTime"), page.screenshot(tmp_path / "first.png")
    assert page.evaluate(STATUS) == "Playing while it is made."
    assert page.evaluate(f"[{SHOWN}.videoWidth, {SHOWN}.videoHeight]") == [96, 64]
    page.wait_for(f"{SHOWN}.currentTime > {early} + 0.5")
    assert page.screenshot(tmp_path / "later.png") != first

    page.evaluate(f"(() => {{ {PROMPT}.value = 'a zebra'; {PROMPT}.dispatchEvent(new Event('input')); }})()")
    page.press("Change prompt")
    page.wait_for(f"{STATUS} === 'From here on by the new prompt.'")
    assert "does not know 'zebra'" in page.evaluate(f"{PLAYER}.querySelector('[data-part=note]').textContent")

    page.press("Pause")
    page.wait_for(f"{SHOWN}.paused")
    page.press("Stop")
    page.wait_for(f"{STATUS}.startsWith('Stopped: ')")
    download = f"{PLAYER}.querySelector('[data-part=download]')"
    assert page.evaluate(f"!{download}.hidden")
    assert page.evaluate(f"fetch({download}.href).then((answer) => answer.blob()).then((blob) => blob.size)") > 1000
    names = page.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)")
    hosts = {urlsplit(name).netloc for name in names if not name.startswith(("data:", "blob:"))}
    assert hosts == {urlsplit(url).netloc}


def test_a_narrow_page_does_not_scroll_sideways(url, tmp_path):
    with opened(url, tmp_path / "profile", width=500) as page:
        page.call("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
        page.wait_for(f"Boolean(window.ultraflash && {PLAYER} && {PROMPT})")
        page.screenshot(tmp_path / "narrow.png")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
