"""Pages as a browser without a network shows them."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "google-chrome", "chromium-browser")


@contextmanager
def opened(page: Path, *, scheme: str = "light", screenshot: Path | None = None) -> Iterator[Any]:
    """A tab with the page; fails if the page reports an error or asks for anything but itself."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium on this machine: install it to test pages")
    from playwright.sync_api import sync_playwright

    errors: list[str] = []
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        size = {"width": 1280, "height": 900}
        tab = chromium.new_context(offline=True, color_scheme=scheme, viewport=size).new_page()
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        tab.on("request", lambda request: errors.append(request.url) if is_foreign(request.url) else None)
        tab.goto(page.as_uri())
        yield tab
        if screenshot is not None:
            tab.screenshot(path=str(screenshot), full_page=True)
        chromium.close()
    assert errors == []


def is_foreign(url: str) -> bool:
    return not url.startswith(("file:", "data:", "blob:"))
