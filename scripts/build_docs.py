"""Builds the documentation site into site/ and fails on any warning, dead link, or asset of another host.

python scripts/build_docs.py

Zensical's strict mode checks the links between pages. It does not check pictures, prints faults of docstrings without
failing, and does not look at what the theme loads. Therefore the built pages are read again here.
"""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "site"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
LOADED = {(tag, "src") for tag in ("script", "img", "iframe", "source", "audio", "video")} | {("link", "href")}
"""What a browser fetches by itself. Only a reader follows the href of a link in the text."""
CSS_URL = re.compile(r"""(?:url\(\s*|@import\s+)["']?([^"')\s]+)""")
ON_DEMAND = {"mermaid", "glightbox", "pyodide"}
"""The theme's script fetches a library from another host when a page holds one of these classes."""
ESCAPED_BAR = re.compile(r"<td(?:(?!</td>).)*\\\|", re.DOTALL)


class Page(HTMLParser):
    """Addresses, anchors and classes of one built page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: set[str] = set()
        self.followed: set[str] = set()
        self.anchors: set[str] = set()
        self.classes: set[str] = set()
        self.html = path.read_text("utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes what one tag names."""
        for name, value in attrs:
            if not value:
                continue
            if (tag, name) in LOADED:
                self.loaded.add(value)
            elif (tag, name) == ("a", "href"):
                self.followed.add(value)
            elif name == "id":
                self.anchors.add(value)
            elif name == "class":
                self.classes |= set(value.split())
            elif name == "style":
                self.loaded |= set(CSS_URL.findall(value))


def build() -> list[str]:
    """Runs Zensical in strict mode without its cache and returns its warnings and those about docstrings."""
    shutil.rmtree(SITE, ignore_errors=True)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = COLOUR.sub("", done.stdout + done.stderr).split("Traceback (most recent call last)")[0]
    faults = [line for line in said.splitlines() if re.match(r"(griffe|mkdocstrings|Warning|Error)\b", line)]
    if done.returncode or faults:
        print(said, file=sys.stderr)
    if done.returncode and not faults:
        faults = [f"zensical failed with exit code {done.returncode}"]
    return faults


def check(site: Path) -> list[str]:
    """Faults of built pages: dead addresses, assets of other hosts, pages that no link leads to."""
    pages = {path: Page(path) for path in sorted(site.resolve().rglob("*.html"))}
    linked = {site.resolve() / "index.html", site.resolve() / "404.html"}
    faults = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve()).as_posix()
        faults += [f"{name}: the theme fetches a script for the class {kind}" for kind in page.classes & ON_DEMAND]
        if ESCAPED_BAR.search(page.html):  # the repository's host needs the backslash, Zensical shows it
            faults.append(f"{name}: a table shows \\|, write {{a,b}} instead")
        for address in sorted(page.loaded | page.followed):
            if is_external(address):
                faults += [f"{name}: loads {address} from another host"] if address in page.loaded else []
                continue
            target, anchor = resolve(address, path, site.resolve())
            linked |= {target} - {path}
            if not target.is_file():
                faults.append(f"{name}: {address} does not exist")
            elif anchor and target in pages and anchor not in pages[target].anchors | {"__top"}:
                faults.append(f"{name}: {address} names no anchor")
    for path in sorted(site.rglob("*.css")):
        found = sorted(address for address in CSS_URL.findall(path.read_text("utf-8")) if is_external(address))
        faults += [f"{path.relative_to(site)}: loads {address} from another host" for address in found]
    faults += [f"{path.name}: no page links to it, add it to zensical.toml" for path in pages.keys() - linked]
    return faults if pages else [f"{site} holds no page"]


def is_external(address: str) -> bool:
    """Whether an address leaves the site; `data:` addresses are their own content."""
    return address.startswith("//") or urlsplit(address).scheme not in ("", "data")


def resolve(address: str, page: Path, site: Path) -> tuple[Path, str]:
    """The file and the anchor that a local address on a page means."""
    parts = urlsplit(address)
    path = unquote(parts.path)
    if parts.scheme == "data" or not path:
        return page, unquote(parts.fragment)
    target = (site / path.lstrip("/") if path.startswith("/") else page.parent / path).resolve()
    return target / "index.html" if target.is_dir() else target, unquote(parts.fragment)


def main() -> None:
    """Exits with 1 if there is any fault."""
    faults = build() or check(SITE)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    if faults:
        sys.exit(1)
    print(f"{len(list(SITE.rglob('*.html')))} pages in {SITE.name}/, no warning, nothing loaded from another host")


if __name__ == "__main__":
    main()
