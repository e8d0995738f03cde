"""`/docs` in a browser: it shows the inference routes and asks no other host for anything."""

from __future__ import annotations

import importlib.util
import shutil
from urllib.parse import urlsplit

import pytest

from tests.integration.stack import Stack, missing

pytestmark = pytest.mark.integration
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models")


def test_the_docs_page_shows_the_routes_and_loads_nothing_from_elsewhere(served: Stack) -> None:
    if importlib.util.find_spec("playwright") is None:
        missing("the Python package playwright: make setup-dev")
    browser_path = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser_path is None:
        missing("a browser: apt-get install chromium")
    from playwright.sync_api import expect, sync_playwright  # noqa: PLC0415 - may be missing

    asked: list[str] = []
    problems: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"{served.router.url}/docs")
        for route in ROUTES:
            expect(page.locator(f'[data-path="{route}"]').first).to_be_visible(timeout=10_000)
        page.locator('[data-path="/v1/chat/completions"]').first.click()
        expect(page.get_by_text("What is the capital of France?").first).to_be_visible()
        browser.close()
    hosts = {urlsplit(url).netloc for url in asked if not url.startswith("data:")}
    assert hosts == {urlsplit(served.router.url).netloc}
    assert len(asked) >= 4
    assert problems == []
