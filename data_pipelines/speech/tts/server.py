"""Chatterbox and Dia in this process, or served over HTTP from an environment of their own.

This file needs the standard library and the engine alone, because Chatterbox pins versions that the rest of the
project cannot share: `python scripts/tts_server.py chatterbox --port 8000` runs in Chatterbox's environment.

    GET  /identity    JSON: name, version, model, licence, output_licence, deterministic
    POST /speak       JSON {"text", "seed", "options": {}, "reference": base64 of a WAV or ""} -> WAV, 32-bit float

A wrong request gets status 400 and a failure of the engine status 500, with JSON {"error": reason}. With
PPX_TTS_KEY set, requests must carry it as a bearer token.
"""

import argparse
import base64
import hashlib
import hmac
import json
import os
import struct
import tempfile
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, ClassVar

MAX_REQUEST_BYTES = 1 << 25
DIA_TEXT_BYTES = 1024


class Refused(ValueError):
    """The request is wrong and cannot be fulfilled."""


def _identity(name: str, package: str, model: str | None, default_model: str, licence: str, note: str) -> dict:
    """Provenance of an engine; weights of a local folder are hashed."""
    identity = {
        "name": name,
        "version": f"{package} {metadata.version(package)}",
        "model": default_model if model is None else Path(model).name,
        "licence": licence,
        "output_licence": licence,
        "note": note,
        "deterministic": False,
    }
    if model is not None and Path(model).is_dir():
        whole = hashlib.sha256()
        for path in sorted(Path(model).rglob("*.safetensors")):
            with open(path, "rb") as file:
                while block := file.read(1 << 22):
                    whole.update(block)
        identity["model_sha256"] = whole.hexdigest()
    return identity


def _check(options: dict, ranges: dict) -> dict:
    """Options by name, within their ranges."""
    for key, value in options.items():
        low, high = ranges.get(key, (None, None))
        if low is None:
            raise Refused(f"option {key!r}: choose one of {', '.join(ranges)}")
        if not isinstance(value, (int, float)) or not low <= value <= high:
            raise Refused(f"option {key}={value!r}: must be {low} to {high}")
    return options


class Chatterbox:
    """One turn at a time, in the voice of a reference clip; 24 kHz. `model` is a folder, None downloads the weights."""

    OPTIONS: ClassVar = {"exaggeration": (0.0, 2.0), "cfg_weight": (0.0, 1.0), "temperature": (0.05, 2.0)}

    def __init__(self, model: str | None = None, device: str = "cpu") -> None:
        engine = import_module("chatterbox.tts").ChatterboxTTS
        self._torch = import_module("torch")
        self._engine = engine.from_pretrained(device) if model is None else engine.from_local(model, device)
        licence, note = "MIT", "the sound carries Resemble's Perth watermark"
        self._about = _identity("chatterbox", "chatterbox-tts", model, "ResembleAI/chatterbox", licence, note)

    def identity(self) -> dict:
        """Returns the provenance of the engine."""
        return self._about

    def say(self, text: str, reference: bytes, seed: int, options: dict) -> tuple[Any, int]:
        """Returns float32 [samples] and 24000. Raises: Refused without a reference or for unknown options."""
        if not reference:
            raise Refused("chatterbox needs a reference clip")
        _check(options, self.OPTIONS)
        self._torch.manual_seed(seed)
        with tempfile.NamedTemporaryFile(suffix=".wav") as clip:
            clip.write(reference)
            clip.flush()
            wav = self._engine.generate(text, audio_prompt_path=clip.name, **options)
        return wav.reshape(-1).float().cpu().numpy(), int(self._engine.sr)


class Dia:
    """Two speakers, `[S1] ... [S2] ...`, as one 44.1 kHz mono mixture of at most 35.7 s, the reference included.

    With a reference, the text begins with what is said in it; the result holds what comes after it.
    """

    OPTIONS: ClassVar = {
        "guidance_scale": (1.0, 10.0),
        "temperature": (0.05, 3.0),
        "top_p": (0.05, 1.0),
        "top_k": (1, 1024),
    }
    DEFAULTS: ClassVar = {"guidance_scale": 3.0, "temperature": 1.8, "top_p": 0.90, "top_k": 45}
    HUB = "nari-labs/Dia-1.6B-0626"

    def __init__(self, model: str | None = None, device: str = "cpu") -> None:
        transformers = import_module("transformers")
        self._torch = import_module("torch")
        self._processor = transformers.AutoProcessor.from_pretrained(model or self.HUB)
        engine = transformers.DiaForConditionalGeneration.from_pretrained(model or self.HUB)
        self._engine, self._device = engine.to(device).eval(), device
        self._about = _identity("dia", "transformers", model, self.HUB, "Apache-2.0", "")

    def identity(self) -> dict:
        """Returns the provenance of the engine."""
        return self._about

    def say(self, text: str, reference: bytes, seed: int, options: dict) -> tuple[Any, int]:
        """Returns float32 [samples] and 44100. Raises: Refused for a text that is too long or unknown options."""
        if len(text.encode()) > DIA_TEXT_BYTES or not text.startswith("[S1]"):
            raise Refused(f"dia takes at most {DIA_TEXT_BYTES} bytes that begin with [S1]")
        options = self.DEFAULTS | _check(options, self.OPTIONS)
        rate = self._processor.feature_extractor.sampling_rate
        given = {"audio": _read_wav(reference, rate), "sampling_rate": rate} if reference else {}
        inputs = self._processor(text=[text], padding=True, return_tensors="pt", **given).to(self._device)
        length = self._processor.get_audio_prompt_len(inputs["decoder_attention_mask"]) if reference else None
        room = self._engine.config.decoder_config.max_position_embeddings - max(self._engine.config.delay_pattern)
        room -= inputs["decoder_attention_mask"].shape[1]
        if room <= 0:
            raise Refused("dia has no room after this reference: give a shorter one")
        self._torch.manual_seed(seed)
        with self._torch.inference_mode():
            codes = self._engine.generate(
                **inputs, max_new_tokens=room, do_sample=True, **{**options, "top_k": int(options["top_k"])}
            )
        wav = self._processor.batch_decode(codes, audio_prompt_len=length)[0]
        return wav.reshape(-1).float().cpu().numpy(), rate


ENGINES = {"chatterbox": Chatterbox, "dia": Dia}


def _read_wav(data: bytes, rate: int) -> Any:
    """Samples of a 32-bit float mono WAV as `float_wav` writes it. Raises Refused for another file."""
    numpy = import_module("numpy")
    if data[:4] != b"RIFF" or data[20:24] != struct.pack("<HH", 3, 1) or struct.unpack("<I", data[24:28])[0] != rate:
        raise Refused(f"the reference must be a mono 32-bit float WAV at {rate} Hz")
    return numpy.frombuffer(data[44:], "<f4").copy()


def float_wav(samples: Any, rate: int) -> bytes:
    """A mono 32-bit float WAV of float32 [samples]; NaN survives, for the client to see."""
    data = samples.astype("<f4").tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, rate, 4 * rate, 4, 32)
    return (
        struct.pack("<4sI4s", b"RIFF", 36 + len(data), b"WAVE") + form + struct.pack("<4sI", b"data", len(data)) + data
    )


def parse_request(body: bytes) -> tuple[str, int, dict, bytes]:
    """Text, seed, options and reference of a request. Raises Refused for any other shape."""
    try:
        asked = json.loads(body)
        text, seed, options = asked["text"], asked["seed"], asked.get("options") or {}
        reference = base64.b64decode(asked.get("reference") or "", validate=True)
    except (ValueError, KeyError, TypeError, AttributeError) as why:
        raise Refused(f"not a request ({type(why).__name__}: {why})") from why
    if not (isinstance(text, str) and text.strip() and isinstance(seed, int) and isinstance(options, dict)):
        raise Refused("a request needs a text, an integer seed and an object of options")
    return text, seed, options, reference


def make_handler(engine: Any, key: str) -> type[BaseHTTPRequestHandler]:
    """The request handler of one engine; one request at a time reaches it."""
    lock = threading.Lock()
    about = json.dumps(engine.identity(), sort_keys=True).encode()
    stamp = hashlib.sha256(about).hexdigest()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self._is_known():
                found = self.path == "/identity"
                self._answer(200 if found else 404, about if found else _error(f"no such path {self.path}"))

        def do_POST(self) -> None:
            size = self.headers.get("Content-Length", "")
            if not size.isdigit() or int(size) > MAX_REQUEST_BYTES:
                self.close_connection = True
                return self._answer(400, _error(f"a request says its length, at most {MAX_REQUEST_BYTES} bytes"))
            body = self.rfile.read(int(size))
            if not self._is_known():
                return None
            if self.path != "/speak":
                return self._answer(404, _error(f"no such path {self.path}"))
            try:
                text, seed, options, reference = parse_request(body)
                with lock:
                    wav, rate = engine.say(text, reference, seed, options)
            except Refused as why:
                return self._answer(400, _error(str(why)))
            except Exception as why:  # noqa: BLE001 - the client gets whatever the engine raises
                return self._answer(500, _error(f"{type(why).__name__}: {why}"))
            return self._answer(200, float_wav(wav, rate), "audio/wav")

        def _is_known(self) -> bool:
            given = self.headers.get("Authorization", "")
            if key and not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
                self._answer(401, _error("a key is needed"))
                return False
            return True

        def _answer(self, code: int, data: bytes, kind: str = "application/json") -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("X-Engine", stamp)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """No log: texts and keys stay private."""

    return Handler


def _error(reason: str) -> bytes:
    return json.dumps({"error": reason}).encode()


def main() -> None:
    """Serves one engine until it is stopped."""
    parser = argparse.ArgumentParser(description="Serves a speech engine over HTTP.")
    parser.add_argument("engine", choices=sorted(ENGINES))
    parser.add_argument("--engine-model", help="folder with the weights; without it they are downloaded")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 for any free port, which is printed")
    args = parser.parse_args()
    engine = ENGINES[args.engine](args.engine_model, args.device)
    key = os.environ.get("PPX_TTS_KEY", "").strip()
    server = ThreadingHTTPServer((args.host, args.port), make_handler(engine, key))
    server.daemon_threads = True
    print(f"{args.engine} at http://{args.host}:{server.server_address[1]}", flush=True)
    with suppress(KeyboardInterrupt):
        server.serve_forever()
