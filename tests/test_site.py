"""The check of the built documentation finds what must not be there, and finds nothing on a clean site."""

import importlib.util
from pathlib import Path

import pytest

from tests.paths import ROOT

PATH = ROOT / "scripts" / "build_docs.py"
SPEC = importlib.util.spec_from_file_location("build_docs", PATH)
assert SPEC and SPEC.loader
build_docs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(build_docs)

INDEX = """<html><head><link rel="stylesheet" href="style.css"></head><body id="top">
<a href="part/page.html#here">page</a> <a href="https://example.org">elsewhere</a> <a href="#top">up</a>
<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw="> %s</body></html>"""


def write_site(folder: Path, more: str = "", css: str = "body { color: black }") -> Path:
    """A site of three pages that are linked with each other."""
    (folder / "part").mkdir()
    (folder / "index.html").write_text(INDEX % more)
    (folder / "404.html").write_text("<a href='/'>home</a>")
    (folder / "part" / "page.html").write_text("<h1 id='here'>Here</h1><a href='../index.html'>home</a>")
    (folder / "style.css").write_text(css)
    return folder


def test_a_clean_site_has_no_fault(tmp_path: Path) -> None:
    assert build_docs.check(write_site(tmp_path)) == []


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ("<img src='none.png'>", "index.html: none.png does not exist"),
        ("<a href='part/none.html'>", "index.html: part/none.html does not exist"),
        ("<a href='part/page.html#none'>", "index.html: part/page.html#none names no anchor"),
        ("<script src='https://example.org/x.js'>", "index.html: loads https://example.org/x.js from another host"),
        ("<img src='//example.org/x.png'>", "index.html: loads //example.org/x.png from another host"),
        ("<p style='background: url(http://a.b/c)'>", "index.html: loads http://a.b/c from another host"),
        ("<pre class='x mermaid'>", "index.html: the theme fetches a script for the class mermaid"),
        ("<td><code>a\\|b</code></td>", "index.html: a table shows \\|, write {a,b} instead"),
    ],
)
def test_a_fault_of_a_page_is_named(tmp_path: Path, more: str, fault: str) -> None:
    assert build_docs.check(write_site(tmp_path, more)) == [fault]


def test_fonts_and_imports_of_other_hosts_are_named(tmp_path: Path) -> None:
    css = "@import 'https://a.b/c.css'; @font-face { src: url(\"https://a.b/d.woff2\") }"
    assert build_docs.check(write_site(tmp_path, css=css)) == [
        "style.css: loads https://a.b/c.css from another host",
        "style.css: loads https://a.b/d.woff2 from another host",
    ]


def test_a_page_that_nothing_links_to_is_named(tmp_path: Path) -> None:
    (write_site(tmp_path) / "lost.html").write_text("<a href='index.html'>home</a>")
    assert build_docs.check(tmp_path) == ["lost.html: no page links to it, add it to zensical.toml"]


def test_an_empty_site_is_a_fault(tmp_path: Path) -> None:
    assert build_docs.check(tmp_path) == [f"{tmp_path} holds no page"]
