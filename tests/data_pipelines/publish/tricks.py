"""What can be wrong, by accident or intent, in a folder of shards from elsewhere: one function for each trick."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.files import sha256_file
from data_pipelines.shards.rows import NAME, PARTS, Index
from tests.data_pipelines.tiny_dialogues import overwrite

SPLITS = ("train", "heldout")
SECRET = b"-----BEGIN PRIVATE KEY-----" * 1000
LICENCE = "\x1b[2J|<img src=x onerror=alert(1)>\n# [x](http://example.org) `CC0-1.0`"
"""Steers a terminal, ends a table and a line, and holds HTML and a link."""
Trick = Callable[[Path], None]


def forge(change: Callable[[Index], object]) -> Trick:
    """Changes the index of each split, and its hash in the manifest."""

    def trick(shards: Path) -> None:
        for split in SPLITS:
            index = Index.load(shards / split)
            index.columns = {name: column.copy() for name, column in index.columns.items()}
            change(index)
            index.save(shards / split / NAME)
        sign(shards)

    return trick


def edit(change: Callable[[dict[str, Any]], object]) -> Trick:
    """Changes the manifest."""

    def trick(shards: Path) -> None:
        manifest = json.loads((shards / "manifest.json").read_text())
        change(manifest)
        (shards / "manifest.json").write_text(json.dumps(manifest))

    return trick


def sign(shards: Path) -> None:
    """Makes the manifest state the hashes of the indexes that are there."""
    edit(lambda manifest: manifest["index"].update({s: sha256_file(shards / s / NAME) for s in SPLITS}))(shards)


def rewrite(pattern: str, change: Callable[[bytes], bytes]) -> Trick:
    """Changes members of all dialogues whose names match, in place."""

    def trick(shards: Path) -> None:
        for split in SPLITS:
            index = Index.load(shards / split)
            for i in range(len(index)):
                side = index.row(i).side
                for member in ("meta.json", "audio.flac", f"{side}.text.json", f"{side}.voice.flac"):
                    if re.fullmatch(pattern, member):
                        overwrite(shards / split, index.id(i), member, change)

    return trick


def same_size(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """Replaces `old` by `new`, which is filled up with blanks to the same size: JSON ignores them behind a value."""
    assert len(new) <= len(old), (old, new)
    return lambda data: data.replace(old, new.ljust(len(old)))


def column(name: str, value: Callable[[Any], Any]) -> Trick:
    """Changes one column of the index."""
    return forge(lambda index: index.columns.update({name: value(index.columns[name])}))


def name_a_file_outside(index: Index) -> None:
    """The voice clip is a file outside of the shards, of unknown size."""
    index.shard_names[0], index.shard_sizes[0] = "../../private", None  # type: ignore[call-overload]
    index.columns["offset"][:] = 0
    k = 2 * PARTS.index("clip")
    index.columns["places"][0, k : k + 2] = (0, 200)


def nameless_size(index: Index) -> None:
    """The sizes of tars are unknown."""
    index.shard_sizes = [None] * len(index.shard_sizes)  # type: ignore[list-item]


def other_id(index: Index) -> None:
    """The id of a dialogue leads out of any folder."""
    ids = np.zeros((len(index), 10), np.uint8)
    ids[:] = list(b"../../../x")
    index.columns["ids"] = ids


def other_source(index: Index) -> None:
    """A source leads out of any folder."""
    index.source_names[0] = "../../x"


def beyond_the_tar(places: Any) -> Any:
    """The voice clips end beyond the end of their tar."""
    places[:, 2 * PARTS.index("clip") + 1] = 2**30
    return places


def link(name: str) -> Trick:
    """Moves a file or folder out of the shards, to where the user has it, and leaves a link in its place."""

    def trick(shards: Path) -> None:
        for path in sorted(shards.glob(name)):
            moved = shards.parent.parent / f"own-{path.parent.name}-{path.name}"
            path.rename(moved)
            path.symlink_to(moved)

    return trick


def plant_links(shards: Path) -> None:
    """Temporary names lead to a file of the user's."""
    for name in ("train/.index.safetensors.part", "heldout/.index.safetensors.part", ".manifest.json.part", ".lock"):
        (shards / name).symlink_to(shards.parent.parent / "private")


def number(word: re.Match[bytes]) -> bytes:
    """A number in the place of a word."""
    return b"7".ljust(len(word[0]))


def deep(data: bytes) -> bytes:
    """JSON of the same size that is as deep as it is long."""
    return b"[" * (len(data) // 2) + b"]" * (len(data) - len(data) // 2)


def deep_report(shards: Path) -> None:
    """report.json is JSON of 100,000 levels."""
    (shards / "report.json").write_text("[" * 100_000 + "]" * 100_000)


def deep_manifest(shards: Path) -> None:
    """manifest.json is JSON of 100,000 levels."""
    (shards / "manifest.json").write_text('{"format": 2, "codec": ' + "[" * 100_000 + "]" * 100_000 + "}")


def nasty_licence(shards: Path) -> None:
    """The licence of all dialogues steers the terminal, and the manifest knows it."""
    rewrite("meta.json", same_size(b'"CC0-1.0"', rb'"\u001b0"'))(shards)
    edit(lambda manifest: manifest["licences"].update({"\x1b0": {"dialogues": 1, "hours": 1.0}}))(shards)


def licence_of_manifest(shards: Path) -> None:
    """A licence in the manifest steers the terminal and the card."""
    edit(lambda manifest: manifest["licences"].update({LICENCE: {"dialogues": 1, "hours": 1.0}}))(shards)


INDEX_TRICKS: dict[str, Trick] = {
    "name-outside": forge(name_a_file_outside),
    "null-sizes": forge(nameless_size),
    "id-outside": forge(other_id),
    "source-outside": forge(other_source),
    "column-of-floats": column("side", lambda side: side.astype(np.float32)),
    "column-of-fewer-rows": column("num_words", lambda number: number[:-1]),
    "side-out-of-range": column("side", lambda side: side + 7),
    "place-beyond-the-tar": column("places", beyond_the_tar),
    "link-index": link(f"*/{NAME}"),
}
"""What is refused where an index is opened."""

FOLDER_TRICKS: dict[str, Trick] = {
    "link-tar": link("*/*.tar"),
    "link-train": link("train"),
    "link-heldout": link("heldout"),
    "link-manifest": link("manifest.json"),
    "planted-links": plant_links,
    "other-hash": edit(lambda manifest: manifest["index"].update(dict.fromkeys(SPLITS, "0" * 64))),
    "deep-manifest": deep_manifest,
    "deep-report": deep_report,
    "nasty-licence": nasty_licence,
    "nasty-licence-of-manifest": licence_of_manifest,
}
"""What is wrong with the folder around the tars."""

SAMPLE_TRICKS: dict[str, Trick] = {
    "clip-no-flac": rewrite(r"\w+\.voice\.flac", lambda data: SECRET[: len(data)].ljust(len(data), b".")),
    "audio-no-flac": rewrite(r"audio\.flac", lambda data: SECRET[: len(data)].ljust(len(data), b".")),
    "words-no-text": rewrite(r".*\.json", lambda data: re.sub(rb'"(please|could|you)"', number, data)),
    "lone-surrogates": rewrite(r".*\.json", same_size(b"You work for CitySan.", rb"\ud800 \udfff.")),
    "deep-record": rewrite("meta.json", deep),
    "deep-text": rewrite(r"\w+\.text\.json", deep),
}  # fmt: skip
"""What is wrong with the bytes of samples."""


def everything(shards: Path) -> None:
    """All at once; what makes another trick pointless, such as a manifest that cannot be read, is left out."""
    for name in ("clip-no-flac", "audio-no-flac", "words-no-text", "lone-surrogates"):
        SAMPLE_TRICKS[name](shards)

    def all_columns(index: Index) -> None:
        name_a_file_outside(index)
        nameless_size(index)
        other_id(index)
        other_source(index)
        index.columns["places"] = beyond_the_tar(index.columns["places"])
        index.columns["side"] = (index.columns["side"] + 7).astype(np.float32)

    forge(all_columns)(shards)
    for name in ("link-tar", "planted-links", "deep-report", "nasty-licence-of-manifest", "other-hash"):
        FOLDER_TRICKS[name](shards)
