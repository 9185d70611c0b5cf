"""`make page-check`: the page in headless Chromium by the keyboard alone; needs playwright and a Chromium.

Fails where a console error is told, a request fails or leaves for another host, the first answer takes too long, or too
much is fetched beside Pyodide.
"""

from __future__ import annotations

import http.server
import json
import shutil
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

SLOWEST_S, LARGEST_BYTES = 10.0, 8_000_000
_PATIENCE_MS = 300_000
ANSWERED = "document.body.dataset.busy === ''"
FILLED = (
    "document.querySelectorAll('#frontier-table tbody tr').length === 5"
    " && !document.querySelector('#frontier-table').textContent.includes('…')"
)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    extensions_map = {  # noqa: RUF012  (as the base class has it)
        **http.server.SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript",
    }  # fmt: skip

    def log_message(self, *_: Any) -> None:
        return


def served(folder: Path) -> http.server.ThreadingHTTPServer:
    """The page on a free port of this machine."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def check(folder: Path, slowest_s: float = SLOWEST_S, picture: Path | None = None) -> dict[str, Any]:
    """What was seen: seconds to the first answer, bytes, verdicts; `faults` is empty where all is well."""
    from playwright.sync_api import sync_playwright

    server = served(folder)
    home = f"http://127.0.0.1:{server.server_port}/"
    faults: list[str] = []
    fetched: dict[str, int] = {}
    with sync_playwright() as play:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        page.on("console", lambda told: faults.append(f"console: {told.text}") if told.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(f"page: {error}"))
        page.on("requestfailed", lambda asked: faults.append(f"failed: {asked.url}"))

        def came(response: Any) -> None:
            if not response.url.startswith((home, "data:", "blob:")):
                faults.append(f"left for {response.url}")
            elif response.status == 200:
                name = response.url.removeprefix(home).partition("#")[0]
                path = folder / (name or "index.html")
                fetched[name] = path.stat().st_size if path.is_file() else 0

        page.on("response", came)
        begun = time.monotonic()
        page.goto(home)
        page.wait_for_function(ANSWERED, timeout=_PATIENCE_MS)
        first_s = time.monotonic() - begun
        first = page.inner_text("#verdict")
        seen: dict[str, Any] = {"first_s": round(first_s, 1), "first": first}
        # By the keyboard alone: from the top to the card, then on through the knobs.
        page.keyboard.press("Tab")
        page.keyboard.press("Control+A")
        page.keyboard.type("8GB")
        page.wait_for_function(ANSWERED, timeout=_PATIENCE_MS)
        if page.inner_text("#verdict") == first:
            faults.append("another card changes nothing")
        seen["8GB"] = page.inner_text("#verdict")
        seen["link"] = page.url.removeprefix(home)
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == "frontier":
                break
        else:
            faults.append("the frontier's button is not reached by Tab")
        page.keyboard.press("Enter")
        page.wait_for_function(FILLED, timeout=_PATIENCE_MS)
        seen["frontier"] = page.inner_text("#frontier-table tbody").split("\n")
        seen["surveyed"] = page.locator("#survey-table tbody tr").count()
        if picture is not None:
            page.screenshot(path=str(picture), full_page=False)
        again = browser.new_page()
        again.goto(home + seen["link"])
        again.wait_for_function(ANSWERED, timeout=_PATIENCE_MS)
        if again.inner_text("#verdict") != seen["8GB"]:
            faults.append("a shared link answers something else")
        browser.close()
    server.shutdown()
    seen["bytes"] = sum(size for name, size in fetched.items() if not name.startswith("pyodide/"))
    if seen["bytes"] > LARGEST_BYTES:
        faults.append(f"{seen['bytes']:,} bytes beside Pyodide")
    if first_s > slowest_s:
        faults.append(f"the first answer took {first_s:.1f} s")
    return {**seen, "faults": faults}


if __name__ == "__main__":
    found = check(Path(sys.argv[1]), picture=Path(sys.argv[2]) if len(sys.argv) > 2 else None)
    print(json.dumps(found, indent=1))
    raise SystemExit(1 if found["faults"] else 0)
