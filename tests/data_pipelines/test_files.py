"""Files of the stages: content that is written once, folders that belong to one run, checksums and addresses."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipelines.files import claim_folder, save_once, save_pieces, sha256, verified
from data_pipelines.web import checked_address, key_of
from model.errors import UserError
from model.files import LOCK
from tests.refusals import refused


def test_content_is_written_once_and_other_content_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    assert save_once(path, b"one two") and not save_pieces(path, [b"one", b" two"])
    for other in (b"one", b"one two three", b"one twx"):
        with refused("exists", path, "choose another --out"):
            save_once(path, other)
    assert path.read_bytes() == b"one two" and len(list(path.parent.iterdir())) == 1
    with refused("exists", path.parent):
        save_once(path.parent, b"one two")


def test_pieces_that_fail_leave_no_file(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"half"
        raise PermissionError("of the source, not of the file")

    with pytest.raises(PermissionError, match="of the source"):
        save_pieces(tmp_path / "a.txt", pieces())
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with refused("cannot-write", tmp_path / "file" / "a.txt"):
        save_once(tmp_path / "file" / "a.txt", b"x")
    with refused("cannot-write", "x" * 300):
        save_once(tmp_path / ("x" * 300), b"x")


def test_a_folder_is_claimed_by_one_verb_and_its_settings(tmp_path: Path) -> None:
    settings = {"seed": 1, "options": {"gates": {"dc": None}, "voices": ("a", "b")}}
    for _ in range(2):
        claim_folder(tmp_path / "out", "verb.json", settings, "verb")
    with refused("other-settings", "options.gates.dc", "None", "0.5"):
        claim_folder(tmp_path / "out", "verb.json", settings | {"options": {"gates": {"dc": 0.5}}}, "verb")
    with refused("other-settings", tmp_path / "out", "`ppx-data other`"):
        claim_folder(tmp_path / "out", "other.json", settings, "other")
    (tmp_path / "out" / "verb.json").write_text("{")
    with refused("unreadable", "verb.json"):
        claim_folder(tmp_path / "out", "verb.json", settings, "verb")


def test_what_a_killed_run_leaves_of_its_lock_does_not_make_a_folder_another_s(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("process 1 on there")
    claim_folder(tmp_path, "verb.json", {"seed": 1}, "verb")


def test_data_is_verified_by_its_checksum() -> None:
    # the digest of "abc" in FIPS 180-2
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert verified(b"abc", expected, "a file") == b"abc" and sha256(b"abc") == expected
    with refused("checksum", "a file", expected[:16]):
        verified(b"abd", expected, "a file")


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://[", "http://host:x", "http://a b", "host:80"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with refused("bad-value", "--url", url):
        checked_address(url, "--url", "KEY")


def test_an_address_with_a_key_is_refused_and_not_shown() -> None:
    for url in ("http://user:secret@host", "http://host/?key=secret"):
        with pytest.raises(UserError, match=r"^--url holds a user name or key: put the key into \$KEY instead$"):
            checked_address(url, "--url", "KEY")
    assert checked_address("http://127.0.0.1:8000/v1/", "--url", "KEY") == "http://127.0.0.1:8000/v1"


def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", " good\n")
    assert key_of("KEY") == "good"
    monkeypatch.setenv("KEY", "se cret")
    with pytest.raises(UserError, match=r"^the key in \$KEY holds a space or a character that no key has"):
        key_of("KEY")
    monkeypatch.delenv("KEY")
    assert key_of("KEY") == ""
