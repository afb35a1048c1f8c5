"""The contract of speech engines, on every adapter alike: espeak and Kokoro for real; Chatterbox and Dia with packages
that stand for them, in this process and behind the real server. And what happens when an engine or its server fails."""

import base64
import http.client
import http.server
import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("espeakng_loader")
pytest.importorskip("num2words")
pytest.importorskip("pocketsphinx")

from data_pipelines.speech import engines  # noqa: E402
from data_pipelines.speech.engines import EngineChoice, open_engine  # noqa: E402
from data_pipelines.speech.spoken import expand  # noqa: E402
from data_pipelines.speech.tts import client as http_backend  # noqa: E402
from data_pipelines.speech.tts import dia, server
from data_pipelines.speech.tts.backend import StoredBackend, checked  # noqa: E402
from data_pipelines.speech.tts.base import EngineGone  # noqa: E402
from data_pipelines.speech.tts.timed import timed_speech  # noqa: E402
from data_pipelines.speech.voices import Clip, Pool, load_pool  # noqa: E402
from model.errors import UserError  # noqa: E402
from tests.data_pipelines import speech_servers  # noqa: E402
from tests.data_pipelines.jobs import wait_for  # noqa: E402
from tests.data_pipelines.speech_servers import SPEAKERS, Server, choice_of  # noqa: E402

fakes, manifest, chatterbox_server, dia_server, here = speech_servers.FIXTURES

TEXT = "It costs $8/month, and you can pick it up on April 12th."


@pytest.fixture(params=["espeak", pytest.param("kokoro", marks=pytest.mark.slow), "chatterbox-http", "chatterbox-here"])
def by_turns(request, tmp_path):
    if request.param == "kokoro" and not engines.is_kokoro_fetched():
        pytest.skip("Kokoro is not fetched: run `ppx-data fetch kokoro`")
    return open_engine(choice_of(request.param, request, tmp_path))


@pytest.fixture(params=["dia-http", "dia-here"])
def at_once(request, tmp_path):
    return open_engine(choice_of(request.param, request, tmp_path))


# ---- the contract
def check_identity(engine) -> None:
    identity = engine.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert {"name", "version", "licence", "output_licence", "deterministic"} <= set(identity)
    assert identity["name"] == engine.name


def check_speech(speech, written: list[str]) -> None:
    assert speech.audio.dtype == np.float32 and speech.audio.ndim == 1
    assert 0.05 < np.abs(speech.audio).max() <= 1 and np.isfinite(speech.audio).all()
    assert [text for text, _, _ in speech.words] == written
    last = -1.0
    for _, start, end in speech.words:
        assert last < start < end <= speech.seconds + 0.03
        last = start


def test_an_engine_of_turns_keeps_the_contract(by_turns):
    check_identity(by_turns)
    voices = by_turns.voices()
    assert len({voice.key for voice in voices}) == len(voices) >= 4
    assert {voice.held_out for voice in voices} == {True, False}
    assert all(voice.key.startswith(f"{by_turns.name}/") for voice in voices)
    speech = by_turns.speak(TEXT, voices[0].key, seed=1)
    check_speech(speech, TEXT.split())
    again = by_turns.speak(TEXT, voices[0].key, seed=1)
    np.testing.assert_array_equal(speech.audio, again.audio)
    assert speech.words == again.words
    with pytest.raises(UserError, match="no such voice"):
        by_turns.speak(TEXT, f"{by_turns.name}/nobody", seed=1)
    with pytest.raises(UserError, match="holds nothing to say"):
        by_turns.speak("...", voices[0].key, seed=1)


LINES = [
    ("agent", "Hello, this is CitySan Services. How can I help you?"),
    ("user", "Hi there. What does the compost bin cost?"),
    ("agent", "It costs $8/month, and pickup is on Monday."),
    ("user", "Alright, thanks."),
]


def test_an_engine_of_dialogues_keeps_the_contract(at_once):
    check_identity(at_once)
    spoken = at_once.converse(LINES, seed=3)
    assert len(spoken) == len(LINES)
    for (_, text), speech in zip(LINES, spoken, strict=True):
        check_speech(speech, text.split())
        assert speech.rate == 44100 and speech.audio[0] == 0 and speech.audio[-1] == 0
    again = at_once.converse(LINES, seed=3)
    for a, b in zip(spoken, again, strict=True):
        np.testing.assert_array_equal(a.audio, b.audio)


# ---- word times
def test_word_times_from_alignment_agree_with_the_synthesizers_own():
    """eSpeak NG knows to the sample when a word starts."""
    espeak = open_engine("espeak")
    texts = ("I would like to order two large pizzas for tonight please.", "Could you deliver it before seven?",
             "My brother repairs old bicycles and gives them away when he is done.",
             "It costs $8/month, and pickup is April 12th.", "Your code is AB-1234, okay?")  # fmt: skip
    errors = []
    for voice in ("espeak/en-us+m1", "espeak/en-us+m2", "espeak/en-us+f2", "espeak/en-us+f5"):
        for text in texts:
            truth = espeak.speak(text, voice, seed=0)
            found = timed_speech(truth.audio, truth.rate, expand(text))
            assert [word for word, _, _ in found.words] == text.split()
            shift = (len(truth.audio) - len(found.audio)) / truth.rate  # what was trimmed at the start
            assert shift < 0.05
            errors += [abs(a - b) for (_, a, _), (_, b, _) in zip(found.words, truth.words, strict=True)]
    assert len(errors) > 150 and np.mean(errors) < 0.04 and np.quantile(errors, 0.95) < 0.1


def test_a_hum_alone_is_all_of_the_sound():
    truth = open_engine("espeak").speak("Mm-hm.", "espeak/en-us+m3", seed=0)
    ((text, start, end),) = timed_speech(truth.audio, truth.rate, expand("Mm-hm.")).words
    assert text == "Mm-hm." and start < 0.06 and end == pytest.approx(truth.words[-1][2], abs=0.05)


# ---- Chatterbox
def test_long_texts_are_said_in_parts(request, tmp_path, monkeypatch):
    from data_pipelines.speech.tts import cloned

    engine = open_engine(choice_of("chatterbox-http", request, tmp_path))
    text = "We close at nine. The shop is open today. You can call us tomorrow."
    whole = engine.speak(text, "chatterbox/anna/anna", seed=0)
    monkeypatch.setattr(cloned, "MAX_LETTERS", 30)
    parts = engine.speak(text, "chatterbox/anna/anna", seed=0)
    check_speech(parts, text.split())
    assert len(list(tmp_path.rglob("*.flac"))) == 1 + 3
    pauses = [parts.words[n + 1][1] - parts.words[n][2] for n in (3, 8)]
    assert min(pauses) >= cloned.BETWEEN_PARTS and whole.words[3][0] == "nine."


def test_the_voice_of_the_clip_decides_who_speaks(request, tmp_path, here, fakes):
    engine = open_engine(choice_of("chatterbox-here", request, tmp_path))
    said = {name: engine.speak("Hello there, my friend.", f"chatterbox/{name}/{name}", seed=0) for name in SPEAKERS}
    assert len({speech.audio.tobytes() for speech in said.values()}) > 1
    voice = {v.key: v for v in engine.voices()}["chatterbox/cleo/cleo"]
    assert voice.held_out and voice.sex == "female" and voice.speaker == "cleo" and voice.licence == "CC0-1.0"


@pytest.mark.parametrize("word, reason", [
    ("Silence", "the engine answered silence"),
    ("Nothing", "the engine answered no sound"),
    ("Broken", "the engine answered NaN"),
    ("Endless", r"the engine answered \d+\.\d s for 18 letters"),
    ("Hasty", r"the engine answered 0\.1 s for 16 letters"),
    ("Loud", "the engine answered samples up to"),
    ("Different", "the words are not found in the sound: 'Different today"),
    ("Crash", "the engine failed"),
])  # fmt: skip
@pytest.mark.parametrize("way", ["chatterbox-http", "chatterbox-here"])
def test_an_unusable_answer_is_an_error_with_its_reason(word, reason, way, request, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    engine = open_engine(choice_of(way, request, tmp_path))
    with pytest.raises(UserError, match=reason):
        engine.speak(f"{word} today, thanks.", "chatterbox/anna/anna", seed=0)
    if word not in ("Different",):  # it sounds like speech: only the alignment knows
        assert not list(tmp_path.rglob("*.flac"))


def requests_of(running: Server) -> int:
    return len(running.log.read_text().splitlines()) if running.log.is_file() else 0


def test_what_fails_with_one_seed_may_succeed_with_the_next(request, tmp_path, chatterbox_server):
    engine = open_engine(choice_of("chatterbox-http", request, tmp_path))
    before, text = requests_of(chatterbox_server), "Sometimes it works."
    for seed in range(5):
        check_speech(engine.speak(text, "chatterbox/anna/anna", seed=seed), text.split())
    assert requests_of(chatterbox_server) - before > 5


def test_what_was_said_once_is_never_asked_for_again(request, tmp_path, chatterbox_server):
    choice = choice_of("chatterbox-http", request, tmp_path)
    first = open_engine(choice).speak("Only once, please.", "chatterbox/anna/anna", seed=0)
    before = requests_of(chatterbox_server)
    again = open_engine(choice).speak("Only once, please.", "chatterbox/anna/anna", seed=0)
    np.testing.assert_array_equal(first.audio, again.audio)
    assert requests_of(chatterbox_server) == before
    open_engine(choice).speak("Only once, please.", "chatterbox/anna/anna", seed=1)
    open_engine(choice).speak("Only once, please.", "chatterbox/bob/bob", seed=0)
    changed = EngineChoice(**{**vars(choice), "options": (("exaggeration", 0.7),)})
    open_engine(changed).speak("Only once, please.", "chatterbox/anna/anna", seed=0)
    assert requests_of(chatterbox_server) == before + 3


@pytest.mark.parametrize("options, message", [
    ((("loudness", 3.0),), "option 'loudness': choose one of exaggeration, cfg_weight, temperature"),
    ((("temperature", 9.0),), "option temperature=9.0: must be 0.05 to 2.0"),
])  # fmt: skip
@pytest.mark.parametrize("way", ["chatterbox-http", "chatterbox-here"])
def test_unknown_options_are_refused(options, message, way, request, tmp_path):
    choice = choice_of(way, request, tmp_path)
    with pytest.raises(UserError, match=message):
        open_engine(EngineChoice(**{**vars(choice), "options": options})).speak("Hello.", "chatterbox/bob/bob", seed=0)


# ---- choices
@pytest.mark.parametrize("given, message", [
    ({"name": "festival"}, "engine 'festival': choose kokoro, espeak, chatterbox, dia"),
    ({"name": "espeak", "url": "http://x"}, "--url has no effect with --engine espeak"),
    ({"name": "kokoro", "device": "cuda"}, "--device has no effect with --engine kokoro"),
    ({"name": "dia", "voices": Path("v")}, "--voices has no effect with --engine dia"),
    ({"name": "chatterbox"}, "--engine chatterbox imitates voices: give --voices"),
    ({"name": "dia", "url": "http://x", "model": "m"}, "--model and --device are the server's business"),
])  # fmt: skip
def test_choices_without_effect_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        EngineChoice(**given)


def test_an_engine_that_is_not_installed_says_how_to_get_it(manifest, monkeypatch):
    monkeypatch.setitem(sys.modules, "chatterbox.tts", None)
    with pytest.raises(
        EngineGone, match="chatterbox cannot be imported .*install chatterbox-tts here, or give the --url"
    ):
        open_engine(EngineChoice(name="chatterbox", voices=manifest))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EngineGone, match=r"dia cannot be imported .*install 'ppx-train\[dia\]' here"):
        open_engine(EngineChoice(name="dia"))


def test_an_engine_whose_weights_cannot_be_had_says_so(manifest, here):
    with pytest.raises(EngineGone, match="chatterbox does not start .the hub cannot be reached.: give --model DIR"):
        open_engine(EngineChoice(name="chatterbox", voices=manifest))


def test_weights_in_a_folder_that_is_not_there_are_never_looked_for_on_a_hub():
    with pytest.raises(EngineGone, match="--model no/such: no such folder: give the one with the weights of dia"):
        open_engine(EngineChoice(name="dia", model="no/such"))


# ---- the server and its client
def ask(url: str, body: bytes | None = None, **headers: str) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=1200) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as why:
        return why.code, json.loads(why.read())


@pytest.mark.parametrize("body, reason", [
    (b"{", "not a request"),
    (b"[]", "not a request"),
    (b'{"text": "a"}', "not a request .KeyError: 'seed'"),
    (b'{"text": "a", "seed": 1, "reference": "***"}', "not a request"),
    (b'{"text": "  ", "seed": 1}', "a request needs a text"),
    (b'{"text": "a", "seed": "1"}', "a request needs a text"),
    (b'{"text": "a", "seed": 1, "options": [1]}', "a request needs a text"),
    (b'{"text": "a", "seed": 1}', "chatterbox needs a reference clip"),
])  # fmt: skip
def test_the_server_refuses_bad_requests_with_400_and_lives_on(body, reason, chatterbox_server):
    import re

    code, answer = ask(f"{chatterbox_server.url}/speak", body)
    assert code == 400 and re.search(reason, answer["error"])
    assert ask(f"{chatterbox_server.url}/identity") == (200, chatterbox_identity(chatterbox_server))


@pytest.mark.parametrize("length", ["-1", "many", str(1 << 30)])
def test_the_server_refuses_impossible_lengths(length, chatterbox_server):
    with urllib.request.urlopen(f"{chatterbox_server.url}/identity") as answer:
        assert answer.status == 200
    connection = http.client.HTTPConnection(chatterbox_server.url.removeprefix("http://"), timeout=1200)
    connection.putrequest("POST", "/speak")
    connection.putheader("Content-Length", length)
    connection.endheaders()
    assert connection.getresponse().status == 400
    connection.close()


def chatterbox_identity(running: Server) -> dict:
    identity = ask(f"{running.url}/identity")[1]
    assert identity["name"] == "chatterbox" and identity["version"] == "chatterbox-tts 0.1.7"
    assert identity["licence"] == "MIT" and len(identity["model_sha256"]) == 64
    return identity


def test_other_paths_are_404(chatterbox_server):
    assert ask(f"{chatterbox_server.url}/etc/passwd")[0] == 404
    assert ask(f"{chatterbox_server.url}/other", b"{}")[0] == 404


def test_the_identity_answers_while_the_engine_works(chatterbox_server, manifest, tmp_path):
    clip = server.float_wav(*load_pool(manifest).audio("anna/anna"))
    go = tmp_path / "go"
    body = json.dumps({"text": f"Waiting for {go}", "seed": 0, "reference": base64.b64encode(clip).decode()}).encode()
    thread = threading.Thread(target=lambda: urllib.request.urlopen(f"{chatterbox_server.url}/speak", body).read())
    thread.start()
    try:
        wait_for(go.with_suffix(".begun").exists)
        assert ask(f"{chatterbox_server.url}/identity")[0] == 200
        assert thread.is_alive()
    finally:
        go.touch()
        thread.join()


def test_a_key_is_asked_for_and_never_shown(fakes, monkeypatch, tmp_path):
    running = Server(fakes, "dia", key="secret-4711")
    try:
        monkeypatch.delenv("PPX_TTS_KEY", raising=False)
        with pytest.raises(EngineGone, match="401 a key is needed: set PPX_TTS_KEY"):
            http_backend.HttpBackend(running.url, "dia")
        monkeypatch.setenv("PPX_TTS_KEY", "secret-4711")
        engine = open_engine(EngineChoice(name="dia", url=running.url, store=tmp_path))
        assert "secret" not in json.dumps(engine.identity())
        engine.converse(LINES[:2], seed=0)
        assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"secret-4711" in p.read_bytes()]
    finally:
        out, err = running.stop()
    assert "secret" not in out + err


@pytest.mark.parametrize("url", ["ftp://host", "host:8000", "http://[host", "http://host:99999", "http://ho st"])
def test_an_address_that_cannot_be_asked_is_refused(url):
    with pytest.raises(UserError, match=r"--url '.+': give a URL like http://127.0.0.1:8000"):
        http_backend.HttpBackend(url, "dia")


def test_an_address_with_a_password_is_refused_without_showing_it():
    with pytest.raises(UserError, match=r"put the key into \$PPX_TTS_KEY") as why:
        http_backend.HttpBackend("http://name:word@host:8000", "dia")
    assert "word" not in str(why.value)


def test_a_key_that_cannot_be_sent_is_refused_without_showing_it(monkeypatch):
    monkeypatch.setenv("PPX_TTS_KEY", "secret\nkey")
    with pytest.raises(UserError, match=r"the key in \$PPX_TTS_KEY holds a space") as why:
        http_backend.HttpBackend("http://127.0.0.1:9", "dia")
    assert "secret" not in str(why.value)


@pytest.mark.parametrize("page", [b"<html>", b"[1]", b"\xff"])
def test_a_server_of_something_else_is_told_from_a_speech_server(page, monkeypatch):
    monkeypatch.setattr(http_backend.HttpBackend, "_ask", lambda *_: (page, ""))
    with pytest.raises(EngineGone, match="http://host is no speech server: .*check --url"):
        http_backend.HttpBackend("http://host", "dia")


class Faulty:
    """A server that answers as told: a list of codes, or exceptions by name; then 200."""

    def __init__(self, *plan: int | str) -> None:
        self.plan, self.asked, self.stopped = list(plan), 0, threading.Event()
        outer = self
        identity = {"name": "dia", "version": "1", "licence": "MIT", "output_licence": "MIT", "deterministic": True}
        stamp = http_backend.fingerprint(identity)
        wav = server.float_wav(np.full(8000, 0.1, np.float32), 16000)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer(200, json.dumps(identity).encode())

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                outer.asked += 1
                step = outer.plan.pop(0) if outer.plan else 200
                if step == "hang":
                    outer.stopped.wait()
                    return
                if step == "cut":
                    self.send_response(200)
                    self.send_header("Content-Length", "1000000")
                    self.end_headers()
                    self.wfile.write(b"RIFF")
                elif step == "drop":
                    self.connection.close()
                elif step == "prose":
                    self.answer(200, b"Sorry, I cannot do that.")
                elif step == "other":
                    self.answer(200, wav, "0" * 64)
                else:
                    self.answer(step, wav if step == 200 else b'{"error": "too busy"}')

            def answer(self, code, data, by=stamp):
                self.send_response(code)
                self.send_header("X-Engine", by)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def client(self, tries=3):
        timeout = 1.0 if "hang" in self.plan else 600.0
        return http_backend.HttpBackend(self.url, "dia", timeout=timeout, tries=tries, wait=0.01)

    def stop(self):
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.parametrize("plan, asked", [
    ((429, 200), 2), ((500, 503, 200), 3), (("cut", 200), 2), (("drop", "drop", 200), 3),
])  # fmt: skip
def test_what_passes_is_tried_again(plan, asked):
    running = Faulty(*plan)
    try:
        audio, rate = running.client().say("hi", b"", 0, {})
        assert rate == 16000 and len(audio) == 8000 and running.asked == asked
    finally:
        running.stop()


def test_an_answer_that_does_not_come_in_time_is_asked_for_again():
    running = Faulty("hang")
    try:
        running.client(tries=20).say("hi", b"", 0, {})
        assert running.asked >= 2  # more where the machine is slow
    finally:
        running.stop()


@pytest.mark.parametrize("plan, kind, message, asked", [
    ((400,), UserError, "the engine refuses: 400 too busy", 1),
    ((422,), UserError, "the engine refuses: 422", 1),
    ((403,), EngineGone, "403 too busy: set PPX_TTS_KEY", 1),
    ((500,) * 9, UserError, "the engine failed: 500 too busy", 2),
    ((429,) * 9, EngineGone, "no answer in 3 tries .429 too busy.: start it and run this again", 3),
    ((503,) * 9, EngineGone, "no answer in 3 tries .503", 3),
    (("drop",) * 9, EngineGone, "no answer in 3 tries", 3),
    (("hang",) * 9, EngineGone, "no answer in 3 tries .timed out.", 3),
    (("other",), EngineGone, "another engine answers than at the start", 1),
])  # fmt: skip
def test_what_does_not_pass_is_told_and_only_the_engines_own_failures_reject_one_script(plan, kind, message, asked):
    running = Faulty(*plan)
    try:
        client = running.client()
        with pytest.raises(UserError, match=message) as why:
            client.say("hi", b"", 0, {})
        assert type(why.value) is kind and running.asked == asked
    finally:
        running.stop()


def test_an_answer_that_is_no_sound_is_refused():
    running = Faulty("prose")
    try:
        with pytest.raises(UserError, match="the engine's answer is no WAV"):
            running.client().say("hi", b"", 0, {})
    finally:
        running.stop()


def test_a_server_of_another_engine_is_refused(chatterbox_server):
    with pytest.raises(UserError, match="serves 'chatterbox', not dia"):
        http_backend.HttpBackend(chatterbox_server.url, "dia")


def test_a_server_that_is_not_there_ends_the_run_at_once(tmp_path):
    client = dict(tries=2, wait=0.01)
    with pytest.raises(EngineGone, match="http://127.0.0.1:9/identity: no answer in 2 tries"):
        http_backend.HttpBackend("http://127.0.0.1:9", "dia", **client)


# ---- checks of what an engine answers
def test_a_peak_above_one_is_turned_down_and_good_sound_stays():
    x = np.sin(np.arange(16000) / 9).astype(np.float32)
    np.testing.assert_array_equal(checked(0.5 * x, 16000, 15), 0.5 * x)
    assert np.abs(checked(1.5 * x[None], 16000, 15)).max() == pytest.approx(1)
    for bad, message in ((np.stack([x, x]), "2 dimensions"), (x[:0], "no sound"), (x * 1e-4, "silence")):
        with pytest.raises(UserError, match=message):
            checked(bad, 16000, 15)
    with pytest.raises(UserError, match="1.0 s for 150 letters"):
        checked(x, 16000, 150)


def test_a_stored_answer_is_whole_or_not_there(tmp_path, monkeypatch):
    class Tone:
        def identity(self):
            return {"name": "tone"}

        def say(self, text, reference, seed, options):
            return (0.3 * np.sin(np.arange(16000) / 9)).astype(np.float32), 16000

    stored = StoredBackend(Tone(), tmp_path)
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        stored.say("hello", b"", 0, {}, letters=10)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    monkeypatch.undo()
    first, rate = stored.say("hello", b"", 0, {}, letters=10)
    again, _ = stored.say("hello", b"", 0, {}, letters=10)
    np.testing.assert_array_equal(first, again)
    assert rate == 16000 and first.dtype == np.float32


# ---- Dia: pieces, chunks and the mixture
def test_lines_become_pieces_and_chunks_within_the_limits():
    long = "This sentence is here to make the turn as long as it takes. " * 8
    lines = [("user", "Hello."), ("agent", long.strip()), ("user", "I see.")]
    pieces = dia.to_pieces(lines)
    assert [piece.tag for piece in pieces] == ["[S1]", *["[S2]"] * (len(pieces) - 2), "[S1]"] and len(pieces) > 4
    assert max(len(piece.text) for piece in pieces) <= dia.PIECE_LETTERS + 20
    chunks = dia.to_chunks(pieces)
    assert [piece for chunk in chunks for piece in chunk] == pieces
    assert max(sum(len(piece.text) for piece in chunk) for chunk in chunks) <= dia.CHUNK_LETTERS
    with pytest.raises(UserError, match="3 speakers, Dia has two"):
        dia.to_pieces([*lines, ("other", "Hm.")])
    assert dia.tagged([("[S1]", "a"), ("[S1]", "b"), ("[S2]", "c")]) == "[S1] a b [S2] c"


def test_long_dialogues_keep_their_voices_from_chunk_to_chunk(request, tmp_path, here, monkeypatch):
    """The reference of later chunks holds the voices of the first, and what it says is not said again."""
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    monkeypatch.setattr(dia, "CHUNK_LETTERS", 110)
    engine = open_engine(choice_of("dia-here", request, tmp_path / "store"))
    spoken = engine.converse(LINES, seed=0)
    for (_, text), speech in zip(LINES, spoken, strict=True):
        check_speech(speech, text.split())
    calls = (tmp_path / "log").read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["False", "True"]
    assert "CitySan" not in calls[1] and "Alright" in calls[1]


def mixture(gap: float, texts=("Hello there, my friend.", "What does it cost today?")):
    espeak = open_engine("espeak")
    parts = [
        espeak.speak(text, voice, seed=0)
        for text, voice in zip(texts, ("espeak/en-us+f2", "espeak/en-us+m2"), strict=True)
    ]  # noqa: E501
    rate = parts[0].rate
    end = parts[0].words[-1][2]
    offset = round((end + gap - parts[1].words[0][1]) * rate)
    audio = np.zeros(offset + len(parts[1].audio), np.float32)
    audio[: len(parts[0].audio)] += parts[0].audio[: len(audio)]
    audio[offset:] += parts[1].audio
    return 0.7 * audio, rate, parts, offset / rate


@pytest.mark.parametrize("gap", [0.1, 0.2, 0.5])
def test_a_mixture_is_cut_between_the_turns(gap):
    audio, rate, parts, offset = mixture(gap)
    texts = ("Hello there, my friend.", "What does it cost today?")
    split = dia.split_mixture(audio, rate, [expand(text) for text in texts])
    for speech, truth in zip(split, parts, strict=True):
        assert speech.seconds == pytest.approx(truth.seconds, abs=0.12)
        # each piece is its own speaker alone: it correlates with that voice as it was before the mixture
        size = 1 << (len(truth.audio) + len(speech.audio)).bit_length()
        cross = np.fft.irfft(np.fft.rfft(truth.audio, size) * np.conj(np.fft.rfft(speech.audio, size)), size)
        assert cross.max() / np.linalg.norm(truth.audio) / np.linalg.norm(speech.audio) > 0.97


@pytest.mark.parametrize("gap", [-0.15, -0.3, -0.5])
def test_turns_that_lie_on_each_other_are_refused(gap):
    audio, rate, _, _ = mixture(gap)
    with pytest.raises(UserError, match="turns overlap: no silence between 'friend.' and 'What'"):
        dia.split_mixture(audio, rate, [expand("Hello there, my friend."), expand("What does it cost today?")])


def test_a_dialogue_with_overlaps_is_refused_whatever_the_seed(at_once):
    with pytest.raises(UserError, match="turns overlap"):
        at_once.converse([("agent", "Overlapping is bad."), ("user", "Why is it so bad?")], seed=0)


def test_dia_refuses_a_text_that_is_too_long(here):
    engine = server.Dia()
    with pytest.raises(server.Refused, match="at most 1024 bytes"):
        engine.say("[S1] " + "a" * 1024, b"", 0, {})
    with pytest.raises(server.Refused, match="begin with .S1."):
        engine.say("[S2] hello", b"", 0, {})


# ---- a pool that changes
def test_a_clip_that_was_replaced_is_not_spoken_with(tmp_path):
    clip = Clip(
        path="a.wav", speaker="a", sex="male", accent="us", licence="x", consent="y", held_out=False, sha256="0"
    )
    (tmp_path / "a.wav").write_bytes(b"other")
    with pytest.raises(UserError, match="not the clip that was checked"):
        Pool(tmp_path, (clip,)).audio("a/a")
