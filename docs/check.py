"""Looks at the built site in a real browser, as a reader would.

    mkdocs build --strict && python docs/check.py site [--pictures FOLDER]

Serves the folder on this machine only and opens every page in headless Chromium. Fails where the
console holds an error, a picture or a formula has no size, a link of the site leads nowhere,
something is asked of another host, or the search does not find `core_svd`. Says so and does nothing
where Chromium and its driver are not installed. --pictures keeps a screenshot of some pages.
"""

import argparse
import functools
import http.server
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urldefrag, urljoin

PHOTOGRAPHED = ("", "guide/maths/", "guide/which-function/", "api/svd/", "benchmarks/")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1000",
)

# What a page holds: links, anchors, pictures and formulas that were not drawn, what was fetched.
LOOK = """
const size = x => x.getBoundingClientRect();
const flat = x => !(size(x).width > 1 && size(x).height > 1);
const hidden = x => x.closest('details:not([open])') !== null;
return {
  links: [...document.querySelectorAll('a[href]')].map(a => a.href),
  anchors: [...document.querySelectorAll('[id]')].map(x => x.id),
  pictures: [...document.images].filter(x => !hidden(x))
      .filter(x => !x.complete || !x.naturalWidth || flat(x)).map(x => x.src),
  formulas: [...document.querySelectorAll('math')].filter(x => !hidden(x) && flat(x)).length,
  drawn: document.querySelectorAll('math').length,
  raw: [...document.querySelectorAll('.arithmatex')].map(x => x.textContent),
  fetched: performance.getEntriesByType('resource').map(x => x.name),
};
"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def served(folder: Path) -> tuple[http.server.ThreadingHTTPServer, str]:
    """Serve a folder on a free port of this machine; return the server and its address."""
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}/"


def browser(chromium: str, chromedriver: str, profile: str):
    """Return a browser that keeps the messages of its console."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(chromedriver))


def look(driver, root: str, page: str) -> tuple[dict, list[str]]:
    """Open a page; return what it holds and what is wrong with it by itself."""
    driver.get(root + page)
    found = driver.execute_script(LOOK)
    logged = [x["message"] for x in driver.get_log("browser") if x["level"] == "SEVERE"]
    wrong = [f"console: {message}" for message in logged]
    wrong += [f"picture not drawn: {source}" for source in found["pictures"]]
    wrong += [f"formula left as text: {text[:60]}" for text in found["raw"]]
    wrong += [f"{found['formulas']} formulas without a size"] if found["formulas"] else []
    wrong += [f"fetched from elsewhere: {x}" for x in found["fetched"] if not x.startswith(root)]
    return found, [f"/{page}: {sentence}" for sentence in wrong]


def broken_links(root: str, folder: Path, pages: dict[str, dict]) -> list[str]:
    """Return a sentence for each link of the site that leads to no file or to no anchor."""
    wrong = []
    for page, found in pages.items():
        for link in sorted(set(found["links"])):
            target, anchor = urldefrag(urljoin(root + page, link))
            if not target.startswith(root):
                continue
            path = target.removeprefix(root)
            there = folder / path
            if not (there / "index.html" if there.is_dir() else there).exists():
                wrong.append(f"/{page}: link to {link}, which does not exist")
            elif anchor and path in pages and anchor not in pages[path]["anchors"]:
                wrong.append(f"/{page}: link to {link}, a page without this anchor")
    return wrong


def found_by_search(driver, root: str, word: str, wait: float = 20) -> list[str]:
    """Type a word into the search field; return the addresses that it finds."""
    driver.get(root)
    driver.execute_script("document.querySelector('[data-md-toggle=search]').click()")
    field = driver.find_element("css selector", "input.md-search__input")
    until = time.monotonic() + wait
    driver.execute_script("arguments[0].focus()", field)
    field.send_keys(word)
    while time.monotonic() < until:
        links = driver.execute_script(
            "return [...document.querySelectorAll('.md-search-result__link')].map(a => a.href)"
        )
        if links:
            return links
        time.sleep(0.2)
    return []


def main() -> int:
    parser = argparse.ArgumentParser(prog="docs/check.py", description=__doc__.split("\n")[0])
    parser.add_argument("site", type=Path, help="the built site")
    parser.add_argument("--pictures", type=Path, help="where screenshots go")
    arguments = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
    programs = [chromium, shutil.which("chromedriver")]
    if None in programs:
        print("site not looked at: it needs chromium and chromedriver, which are not installed")
        return 0
    if not (arguments.site / "index.html").exists():
        raise SystemExit(f"docs/check.py: no site in {arguments.site}; run mkdocs build --strict")
    names = sorted(
        path.parent.relative_to(arguments.site) for path in arguments.site.rglob("index.html")
    )
    server, root = served(arguments.site)
    pages, wrong = {}, []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        driver = browser(*programs, profile)
        try:
            for name in names:
                page = "" if str(name) == "." else f"{name.as_posix()}/"
                pages[page], sentences = look(driver, root, page)
                wrong += sentences
                if arguments.pictures and (page in PHOTOGRAPHED or "quickstart" in page):
                    arguments.pictures.mkdir(parents=True, exist_ok=True)
                    driver.save_screenshot(
                        str(
                            arguments.pictures
                            / f"{page.strip('/').replace('/', '-') or 'home'}.png"
                        )
                    )
            hits = found_by_search(driver, root, "core_svd")
        finally:
            driver.quit()
            server.shutdown()
    wrong += broken_links(root, arguments.site, pages)
    if not any("core_svd" in hit for hit in hits):
        wrong.append(f"search for core_svd finds {hits[:3] or 'nothing'}")
    formulas = sum(found["drawn"] for found in pages.values())
    print(*wrong, sep="\n", end="\n" if wrong else "")
    counts = f"{len(pages)} pages, {formulas} formulas, {len(hits)} hits for core_svd"
    print(f"{counts}: {len(wrong)} faults")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
