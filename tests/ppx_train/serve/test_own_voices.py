"""Voices that callers bring: checked, used, limited in number and time, and kept from everybody else."""

import asyncio
import base64
import gzip
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

pytest.importorskip("aiohttp")
pytest.importorskip("prometheus_client")
pytest.importorskip("webrtcvad", reason="pip install 'ppx-train[speaker]'")

from data_pipelines.files import sha256
from data_pipelines.sound.audio import RATE_HZ, Audio, loudness_normalise
from model.streaming.sample import Sampling
from ppx_train.inference import call
from ppx_train.inference.loading import Release, find_voice
from ppx_train.inference.offline import chat
from ppx_train.serve import clip_request, voice_maker
from ppx_train.serve.access import Access
from ppx_train.serve.clip_request import MOST_AT_ONCE, MOST_BYTES
from ppx_train.serve.opus import Pcm16Writer
from ppx_train.serve.own_voices import OwnVoices
from ppx_train.serve.protocol import Kind
from ppx_train.serve.voice_maker import VoiceMaker
from ppx_train.voices.voice_file import VOICE_ID, read_voice
from tests.paths import ROOT
from tests.ppx_train.serve.clips import WAV, bring, damaged, wav
from tests.ppx_train.serve.live import Live, live, pcm, receive_until, sound, speech, until, within
from tests.ppx_train.serve.realtime import session, until_type, update
from tests.ppx_train.serve.test_calls import talk
from tests.ppx_train.voices.test_command import has_embedder
from tests.refusals import refused

pytestmark = has_embedder


class Desk:
    """A server that takes voices, and the loop it lives in."""

    def __init__(self, loop: asyncio.AbstractEventLoop, one: Live) -> None:
        self.loop, self.one = loop, one

    @property
    def own(self) -> OwnVoices:
        assert self.one.service.own_voices is not None
        return self.one.service.own_voices

    def run(self, test: Any) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(test, 240))


@pytest.fixture(scope="module")
def desk(voiced: Release, folder: Path) -> Iterator[Desk]:
    loop = asyncio.new_event_loop()
    server = live(voiced, model=str(folder), own_voices=True)
    one = loop.run_until_complete(server.__aenter__())
    desk = Desk(loop, one)
    yield desk
    worker = desk.own.maker._process
    loop.run_until_complete(server.__aexit__(None, None, None))
    loop.close()
    assert not worker.is_alive()


def test_a_clip_becomes_a_voice_for_calls_that_nobody_else_hears_of(
    desk: Desk,
    voiced: Release,
    spoken: dict[str, Audio],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(call, "MOST_BACKLOG_FRAMES", 10**6)  # A busy machine must not drop what the test compares.
    clip, one = wav(spoken["man"]), desk.one
    assert one.service.engine is not None
    prefixes = one.service.engine.conversations.prefixes
    source: list[str] = []

    async def test() -> None:
        status, made = await bring(one, clip)
        assert status == 200 and re.fullmatch(r"own-[\w-]{22}", made["id"]) and VOICE_ID.fullmatch(made["id"])
        assert made["kept_seconds"] == 3600 and made["notes"] == []
        path = tmp_path / f"{made['name']}.safetensors"
        path.write_bytes(base64.b64decode(made["file"]))
        voice = read_voice(path, voiced.lm.config)
        assert voice.is_sealed and voice.id == made["name"] and voice.licence is None and voice.consent
        assert voice.codec == voiced.codec.fingerprint() and made["id"] not in str(voice.texts())
        samples_S, _ = soundfile.read(io.BytesIO(clip), dtype="int16")
        source.append(sha256(samples_S.tobytes()))
        levelled = loudness_normalise(samples_S.astype(np.float32) / 2**15, RATE_HZ)
        assert torch.equal(voice.codes_QP, voiced.codec.encode(torch.from_numpy(levelled)[None, None])[0])
        assert voice.source == source[0] and voice.id == f"own-{source[0][:8]}"

        kept = len(prefixes)
        user_TS = speech(10, 3)
        query = {"voice_prompt": made["id"], "text_prompt": "You are kind.", "seed": "4"}
        messages = await talk(one, query, user_TS)
        prompt = voiced.prompt(find_voice(voiced, str(path)), "You are kind.")  # as `ppx-chat --voice-prompt` does
        alone = chat(voiced, user_TS.reshape(-1), prompt_KP=prompt, sampling=Sampling(), seed=4)
        wanted = np.frombuffer(Pcm16Writer().write(alone.agent_S), "<i2")
        np.testing.assert_allclose(sound(messages), wanted, atol=4, rtol=0)
        other = await talk(one, {**query, "voice_prompt": "bob"}, user_TS)
        assert (sound(other) != sound(messages)).any()
        assert len(prefixes) > kept  # those of bob
        kept = len(prefixes)
        await talk(one, query, user_TS)
        assert len(prefixes) == kept  # nothing of an own voice

        assert made["id"] not in json.dumps((await one.get("/api/voices"))[1])
        assert (await one.refused({"voice_prompt": "own-guess"}))[1]["allowed"] == ["ada", "bob"]
        info = (await one.get("/api/info"))[1]
        assert info["own_voices"] == {"seconds": [3.0, 10.0], "kept_seconds": 3600}
        for status in (200, 404):
            async with one.http.delete(f"{one.address}/api/voices/{made['id']}") as got:
                assert got.status == status
        assert (await one.refused(query))[0] == 404

    desk.run(test())
    logged = caplog.text + "".join(str(vars(record)) for record in caplog.records)
    assert "own voice made" in logged and "own-" not in logged and source[0][:8] not in logged


def test_what_is_wrong_with_a_clip_is_said_check_by_check(desk: Desk, spoken: dict[str, Audio]) -> None:
    async def test() -> None:
        kept = len(desk.own)
        for check, (audio, said) in damaged(spoken).items():
            status, body = await bring(desk.one, wav(audio[: 10 * RATE_HZ]))
            assert status == 422 and body["field"] == "clip" and check in body["faults"], (check, body)
            assert said in body["faults"][check] and body["faults"][check] in body["error"]
            assert "skip" not in body["error"]
        assert len(desk.own) == kept

    desk.run(test())


def test_other_requests_are_refused_before_any_work(
    desk: Desk, spoken: dict[str, Audio], monkeypatch: pytest.MonkeyPatch
) -> None:
    man, one = spoken["man"], desk.one
    good = wav(man)
    json_ = {"Content-Type": "application/json"}
    cases: list[tuple[bytes, dict[str, Any], int, str]] = [
        (good, {"consent": ""}, 400, "consent"),
        (good, {"consent": "no"}, 400, "consent"),
        (good, {"headers": json_}, 415, "clip"),
        (wav(man, kind="FLAC"), {}, 400, "clip"),
        (b"", {}, 400, "clip"),
        (gzip.compress(good), {"headers": {**WAV, "Content-Encoding": "gzip"}}, 400, "clip"),
        (b"RIFF" + bytes(100), {}, 400, "clip"),
        (good[:30], {}, 400, "clip"),
        (wav(np.stack([man, man], axis=1)[: 4 * RATE_HZ]), {}, 400, "clip"),
        (wav(man, rate=16000), {}, 400, "clip"),
        (wav(man[: 2 * RATE_HZ]), {}, 400, "clip"),
        (wav(np.tile(man, 2)[: 10 * RATE_HZ + 1]), {}, 400, "clip"),
        (bytes(MOST_BYTES + 1), {}, 413, "clip"),
        (wav(np.tile(man, 8)), {}, 413, "clip"),
    ]

    async def endless() -> Any:
        while True:
            yield bytes(1 << 16)

    async def halting() -> Any:
        yield good[:1000]
        await asyncio.sleep(3600)

    async def test() -> None:
        for clip, more, status, field in cases:
            got = await bring(one, clip, **more)
            assert got[0] == status and got[1]["field"] == field and got[1]["error"], (more, got)
        where = f"{one.address}/api/voices?consent=yes"
        async with one.http.post(where, data=endless(), headers=WAV) as answer:  # without a length
            assert answer.status == 413
        monkeypatch.setattr(clip_request, "UPLOAD_SECONDS", 0.3)
        async with one.http.post(where, data=halting(), headers=WAV) as answer:
            assert answer.status == 408
        monkeypatch.undo()
        desk.own._clips = MOST_AT_ONCE
        try:
            assert (await bring(one, good))[0] == 503
        finally:
            desk.own._clips = 0

    desk.run(test())


def test_token_and_origin_are_asked_for_as_everywhere(
    desk: Desk,
    spoken: dict[str, Audio],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(desk.one.service, "access", Access("a-good-token", (), is_local=True))

    async def test() -> None:
        clip = wav(spoken["man"])
        id_ = desk.own.add(torch.zeros(8, 40, dtype=torch.long))
        assert (await bring(desk.one, clip))[0] == 401
        assert (await bring(desk.one, clip, token="a-good-token", headers={**WAV, "Origin": "http://evil.org"}))[
            0
        ] == 403
        async with desk.one.http.delete(f"{desk.one.address}/api/voices/{id_}") as got:
            assert got.status == 401
        assert desk.own.remove(id_)

    desk.run(test())


def test_voices_end_an_hour_after_their_last_use_and_those_in_use_are_never_dropped(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, one = desk.own, desk.one
    now = [1000.0]
    monkeypatch.setattr(own, "_clock", lambda: now[0])
    monkeypatch.setattr(own, "most", 2)
    codes = torch.zeros(8, 40, dtype=torch.long)

    async def test() -> None:
        talks, waits = own.add(codes), own.add(codes)
        async with one.call({"voice_prompt": talks}) as socket:
            await receive_until(socket, Kind.HANDSHAKE)
            now[0] += 3599
            assert own.codes_of(waits) is not None
            now[0] += 3599  # `waits` was asked for, `talks` is in use
            own.sweep()
            assert len(own) == 2
            now[0] += 2
            assert own.codes_of(waits) is None and len(own) == 1
            assert (await one.refused({"voice_prompt": waits}))[0] == 404
            second = own.add(codes)
            third = own.add(codes)  # instead of the second, though `talks` is older
            assert own.codes_of(second) is None and own.codes_of(third) is not None and len(own) == 2
            async with one.call({"voice_prompt": third}) as other:
                await receive_until(other, Kind.HANDSHAKE)
                with pytest.raises(Exception, match="as many voices as it can"):
                    own.add(codes)
            for frame_S in speech(3):
                await socket.send_bytes(pcm(frame_S))
            await receive_until(socket, Kind.AUDIO)
        await until(lambda: one.free == 2)
        assert own.codes_of(talks) is not None
        now[0] += 3601
        await until(lambda: not len(own), 10)  # without anybody asking

    desk.run(test())


def test_the_realtime_api_takes_the_id_and_lists_none(desk: Desk) -> None:
    async def test() -> None:
        id_ = desk.own.add(torch.zeros(8, 40, dtype=torch.long))
        async with session(desk.one) as socket:
            for voice, type_ in (("own-guess", "error"), (id_, "session.updated")):
                await socket.send_str(update(audio={"output": {"voice": voice}}))
                got = (await until_type(socket, type_))[-1]
                assert got["type"] == type_ and (id_ in json.dumps(got)) == (voice == id_)
        desk.own.remove(id_)

    desk.run(test())


def test_a_worker_that_is_lost_is_replaced(
    desk: Desk,
    spoken: dict[str, Audio],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip = wav(spoken["woman"])

    async def test() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(voice_maker, "CLIP_SECONDS", 0.0)  # It hangs, as far as the server sees.
            status, body = await bring(desk.one, clip)
            assert status == 503 and "try again" in body["error"]
        status, made = await bring(desk.one, clip)
        assert status == 200 and desk.own.remove(made["id"])

    desk.run(test())


def test_servers_take_no_voices_unless_they_are_asked_to(voiced: Release, spoken: dict[str, Audio]) -> None:
    async def test() -> None:
        async with live(voiced) as one:
            status, body = await bring(one, wav(spoken["man"]))
            assert status == 403 and "--own-voices on" in body["error"]
            assert (await one.get("/api/info"))[1]["own_voices"] is None
            async with one.http.delete(f"{one.address}/api/voices/own-x") as got:
                assert got.status == 403

    within(30, test())


def test_a_model_without_a_codec_is_named(tmp_path: Path) -> None:
    maker = VoiceMaker(str(tmp_path), None)
    try:
        with refused("not-found", tmp_path):
            maker.start()
    finally:
        maker.close()


def test_the_worker_ends_with_a_server_that_is_killed(folder: Path) -> None:
    program = "from ppx_train.cli.serve import main; main()"
    words = ["--model", str(folder), "--port", "0", "--own-voices", "on", "--not-realtime", "--max-sessions", "1"]
    server = subprocess.Popen([sys.executable, "-c", program, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None and "1 sessions at" in server.stdout.readline()
        threads = Path(f"/proc/{server.pid}/task").iterdir()
        found = [int(pid) for thread in threads for pid in (thread / "children").read_text().split()]
        workers = [pid for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert workers
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        within(30, gone(workers))
    finally:
        server.kill()
        server.wait()


async def gone(pids: list[int]) -> None:
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 25)
