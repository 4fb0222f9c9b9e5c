"""A headless Chromium in the network namespace of the test, and its view of the page."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from tests.netns.hosts import wait_until

CHROMIUM = Path("/usr/bin/chromium")
CHROMEDRIVER = Path("/usr/bin/chromedriver")

PATIENCE = 120.0
"""Seconds for a browser on a busy machine."""


class Browser:
    """A page in a browser: what it shows, and what it has asked for."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver
        self.requests: list[str] = []
        self.errors: list[str] = []

    def open(self, url: str) -> None:
        self.driver.get(url)

    def script(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def text(self, selector: str) -> str:
        """Return the text of all elements that match, also that of hidden ones."""
        found = "[...document.querySelectorAll(arguments[0])]"
        return str(self.script(f"return {found}.map(e => e.textContent).join(' ')", selector))

    def count(self, selector: str) -> int:
        return len(self.driver.find_elements(By.CSS_SELECTOR, selector))

    def click(self, selector: str) -> None:
        self.script("document.querySelector(arguments[0]).click()", selector)

    def wait_for(self, selector: str, text: str) -> None:
        """Wait until an element shows a text."""
        try:
            wait_until(lambda: text in self.text(selector), f"{text!r} in {selector}", PATIENCE)
        except AssertionError:
            print(self.text("body"))  # pytest shows it.
            raise

    def resize(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        """Emulate a screen: a telephone below 600 pixels."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def collect(self) -> None:
        """Add the log of the browser to `requests` and `errors`."""
        for row in self._log("performance"):
            message = json.loads(row["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
        self.errors += [row["message"] for row in self._log("browser")]
        # The first, empty tab has a page of the browser itself.
        for rows in (self.requests, self.errors):
            rows[:] = [row for row in rows if not row.startswith(("chrome:", "data:"))]

    def _log(self, name: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.driver.get_log(name)  # type: ignore[no-untyped-call]
        return rows

    def origins(self) -> set[str]:
        """Return the origins that were asked for something so far."""
        self.collect()
        return {"{0.scheme}://{0.netloc}".format(urlsplit(url)) for url in self.requests}


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start a browser whose profile is in a folder."""
    options = ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *(
            "--disable-background-networking",
            "--no-first-run",
            "--hide-scrollbars",
            f"--user-data-dir={folder}",
        ),
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # With both paths given, selenium looks for neither on the network.
    driver = Chrome(options=options, service=Service(str(CHROMEDRIVER)))
    try:
        driver.set_page_load_timeout(PATIENCE)
        driver.set_script_timeout(PATIENCE)
        yield Browser(driver)
    finally:
        driver.quit()
