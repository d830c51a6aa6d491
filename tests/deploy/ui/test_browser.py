"""The page in a real browser: Chromium fills it, reads the answer, and calls no other machine."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fusetune.data.table import Table

pytest.importorskip("selenium")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed"),
]
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=1280,1600"),
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()


def wait(found: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """What a function returns as soon as it is true."""
    from selenium.common.exceptions import WebDriverException

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if result := found():
                return result
        except (WebDriverException, IndexError):
            pass  # the page is being drawn
        time.sleep(0.1)
    raise AssertionError(f"{what} did not come")


def test_a_row_is_answered_in_a_browser(browser, run_page, fitted, shop_tables, shop):
    from selenium.webdriver.common.by import By

    page = run_page(fitted, Table.read(shop_tables["test"]), name="shop")
    browser.get(page.url)
    note = wait(lambda: browser.find_element(By.TAG_NAME, "textarea"), "the page")
    assert "shop" in browser.title
    note.send_keys("w5 w9")
    upload = wait(lambda: browser.find_elements(By.CSS_SELECTOR, "input[type=file]"), "the uploads")[0]
    upload.send_keys(str(shop[0] / "red0.png"))
    wait(lambda: browser.find_element(By.CSS_SELECTOR, "img[src*='red0']"), "the picture")
    next(one for one in browser.find_elements(By.CSS_SELECTOR, "button.primary") if one.is_displayed()).click()
    wanted = fitted.predict(
        [{"note": "w5 w9", "photo": str(shop[0] / "red0.png"), "voice": None, "price": None, "plan": None}]
    )
    label = wait(lambda: browser.find_element(By.CSS_SELECTOR, "[data-testid=label-output-value]"), "the answer")
    assert label.text == wanted["label"][0]
    assert "What each column adds" in wait(lambda: browser.find_element(By.TAG_NAME, "body").text, "the text")

    row = browser.find_elements(By.CSS_SELECTOR, "tbody tr td")[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", row)
    text = row.text
    row.click()
    wait(lambda: note.get_property("value").startswith(text.rstrip(".… ")), "the example")
    check_no_calls(browser)


def check_no_calls(browser: Any) -> None:
    """Nothing was asked of another machine, and nothing was refused by the content security policy."""
    entries = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [one["params"]["request"]["url"] for one in entries if one["method"] == "Network.requestWillBeSent"]
    own = ("http://127.0.0.1:", "data:", "blob:", "chrome:", "chrome-untrusted:", "about:")
    assert asked and [url for url in asked if not url.startswith(own)] == []
    said = [entry["message"] for entry in browser.get_log("browser")]
    assert [one for one in said if "Content Security Policy" in one] == []
