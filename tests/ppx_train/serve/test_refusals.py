"""What is refused before the upgrade, and who may call at all."""

import asyncio
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("aiohttp")
pytest.importorskip("prometheus_client")

from model.streaming.sample import Sampling
from ppx_train.inference.loading import Release
from ppx_train.serve.access import Access
from ppx_train.serve.protocol import Kind
from ppx_train.serve.query import Refusal, read_query
from ppx_train.serve.settings import CallLimits, ServeSettings
from ppx_train.serve.voices import read_voices
from ppx_train.voices.folder import save_voice
from ppx_train.voices.voice_file import VoiceFile
from tests.ppx_train.serve.live import live, receive_until, until, within
from tests.refusals import refused

LIMITS = CallLimits()


def query(**fields: str) -> Any:
    return read_query({"codec": "pcm16", **fields}, LIMITS)


def test_queries_of_other_clients_are_understood() -> None:
    page = query(
        voice_prompt="NATF2.pt", text_prompt="x", text_temperature="0.5", text_topk="10", audio_temperature="0.9",
        audio_topk="100", pad_mult="0", repetition_penalty="1.0", repetition_penalty_context="64", text_seed="12",
        audio_seed="34", worker_auth_id="a", email="a@b.c", unheard_of="1",
    )  # fmt: skip
    assert page.voice == "NATF2" and page.role == "x" and page.proto == 1
    assert page.sampling == Sampling(
        text_temperature=0.5, text_top_k=10, audio_temperature=0.9, audio_top_k=100
    )  # fmt: skip
    assert page.seed == query(text_seed="12", audio_seed="34").seed != query(text_seed="34", audio_seed="12").seed
    assert query(seed="7", text_seed="1").seed == 7 and query(seed="-1").seed is None and query().seed is None
    assert query().sampling == Sampling() and query().most_frames == 45000
    assert query(voice_prompt="").voice == "" and query().voice is None and query(text_prompt="").role == ""


def test_numbers_beyond_their_range_are_brought_into_it() -> None:
    wild = query(text_temperature="1e9", audio_temperature="-3", text_topk="0", audio_topk="99999", max_steps="999999")
    assert wild.sampling == Sampling(text_temperature=2.0, text_top_k=500, audio_temperature=1.0, audio_top_k=1)
    assert wild.most_frames == 45000 and query(max_steps="0").most_frames == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text_temperature", "warm"), ("audio_temperature", "nan"), ("text_temperature", "inf"), ("pad_mult", "x"),
        ("text_topk", "2.5"), ("audio_topk", "1" * 4000), ("seed", "0x10"), ("seed", "-2"), ("seed", str(2**63)),
        ("max_steps", "all"), ("proto", "3"), ("codec", "mp3"), ("pads", "yes"), ("text_seed", "-7"),
        ("voice_prompt", "../../etc/passwd"), ("voice_prompt", "a/b.pt"), ("voice_prompt", "a" * 65),
        ("voice_prompt", "ada.pt.pt"), ("repetition_penalty", "--"), ("audio_topk", "\u0663\u0664x"),
    ],
)  # fmt: skip
def test_a_bad_value_names_its_field_and_what_is_allowed(field: str, value: str) -> None:
    with pytest.raises(Refusal) as why:
        query(**{field: value})
    assert why.value.status == 400 and why.value.body["field"] == field and why.value.body["allowed"]
    assert value not in str(why.value.body["error"])


def test_bad_requests_get_json_before_the_upgrade(voiced: Release, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def test() -> None:
        async with live(voiced, limits=CallLimits(role_tokens=100), token="a-good-token") as one:
            token = {"token": "a-good-token"}
            for wanted, status, field in (
                ({"voice_prompt": "../x"}, 400, "voice_prompt"),
                ({"voice_prompt": "eve.pt"}, 404, "voice_prompt"),
                ({"voice_prompt": "no id"}, 400, "voice_prompt"),
                ({"text_prompt": "secret words " * 100}, 400, "text_prompt"),
                ({"seed": "one"}, 400, "seed"),
            ):
                got = await one.refused({**token, **wanted, "email": "me@home.org", "codec": "pcm16"})
                assert got[0] == status and got[1]["field"] == field and got[1]["allowed"], got
            assert (await one.refused({**token, "voice_prompt": "eve"}))[1]["allowed"] == ["ada", "bob"]
            plain = await one.get("/api/chat", params=token)
            assert plain[0] == 400 and "WebSocket" in plain[1]["error"]
            assert (await one.get("/nothing"))[0] == 404
            assert (await one.refused({**token, "text_prompt": ""}, headers={"Origin": "http://evil.org"}))[0] == 403
            async with one.call({**token, "text_prompt": "secret words"}) as socket:
                await receive_until(socket, Kind.HANDSHAKE)
            page = (await one.get("/metrics", params=token))[1]
            assert 'ppx_refusals_total{status="404"} 2.0' in page and "ppx_tick_seconds_bucket" in page
            await until(lambda: one.free == 2)

    within(30, test())
    logged = caplog.text + "".join(str(vars(record)) for record in caplog.records)
    assert "call began" in logged
    for private in ("secret", "a-good-token", "home.org"):
        assert private not in logged


def test_the_token_is_taken_from_three_places(voiced: Release) -> None:
    async def test() -> None:
        async with live(voiced, token="a-good-token") as one:
            for path in ("/api/info", "/api/voices", "/api/presets", "/metrics", "/api/chat"):
                assert (await one.get(path))[0] == 401
            for path in ("/healthz", "/readyz"):
                assert (await one.get(path))[0] == 200
            for headers in ({"Authorization": "Bearer wrong"}, {"Authorization": "Basic a-good-token"}, {}):
                assert (await one.get("/api/info", headers=headers, params={"token": "a-good-tokem"}))[0] == 401
            assert (await one.get("/api/info", headers={"Authorization": "Bearer a-good-token"}))[0] == 200
            async with one.call(protocols=("ppx", "ppx-token.a-good-token")) as socket:
                assert socket.protocol == "ppx"
                await receive_until(socket, Kind.HANDSHAKE)

    within(30, test())


def allowed(access: Access, origin: str | None, host: str = "127.0.0.1:8998") -> bool:
    try:
        access.check({} if origin is None else {"Origin": origin}, {"token": "a-good-token"}, host)
    except Refusal as why:
        assert why.status == 403
        return False
    return True


def test_pages_of_other_origins_may_not_call() -> None:
    own = Access(None, ("https://talk.example/",), is_local=True)
    for origin in (None, "http://127.0.0.1:8998", "https://talk.example"):
        assert allowed(own, origin), origin
    for origin in ("http://evil.org", "null", "http://127.0.0.1:9999", "http://[", "file://127.0.0.1:8998", ""):
        assert not allowed(own, origin), origin
    # A foreign name that points here makes origin and host agree.
    assert not allowed(own, "http://evil.org:8998", host="evil.org:8998")
    assert allowed(Access("a-good-token", (), is_local=True), "https://me.org", host="me.org")
    assert allowed(Access(None, ("*",), is_local=True), "http://evil.org")


def test_an_address_that_others_reach_wants_a_token() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "[::1]"):
        ServeSettings(model="m", host=host).check()
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with refused("missing-option", "--token"):
            ServeSettings(model="m", host=host).check()
        ServeSettings(model="m", host=host, token="a-good-token").check()
        ServeSettings(model="m", host=host, insecure=True).check()
    for token in ("short", "with space in it", "with/slash/in/it", ""):
        with refused("bad-value"):
            ServeSettings(model="m", token=token).check()
    for wrong in (
        {"port": 70000},
        {"max_sessions": 0},
        {"limits": CallLimits(call_seconds=0)},
        {"watchdog_seconds": 0},
        {"precision": "int4"},
    ):
        with refused("bad-value"):
            ServeSettings(model="m", **wrong).check()  # type: ignore[arg-type]
    with refused("bad-combination", "--half", "int8"):
        ServeSettings(model="m", half=True, precision="int8").check()


def test_voices_are_read_at_the_start_and_named_by_ids(voiced: Release, tmp_path: Path) -> None:
    voices = read_voices(voiced)
    assert list(voices.voices) == ["ada", "bob"] and voices.unnamed == ("no id",) and voices.default == "ada"
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    with refused("unreadable"):
        read_voices(voiced, tmp_path)
    with refused("not-found"):
        read_voices(voiced, tmp_path / "none")


def test_voices_that_were_added_are_offered_with_their_terms(voiced: Release, tmp_path: Path) -> None:
    codes_QP = torch.randint(64, (8, 25))
    anna = VoiceFile(
        id="anna", label="Anna Müller", licence="CC-BY-4.0", consent="release of 2026-03-01",
        codec=voiced.codec.fingerprint(), codes_QP=codes_QP,
    )  # fmt: skip
    save_voice(tmp_path, anna)
    save_voice(tmp_path, replace(anna, id="ada"))

    async def test() -> None:
        async with live(voiced, voice_prompt_dir=tmp_path) as one:
            listed = (await one.get("/api/voices"))[1]["voices"]
            named = {"label": "Anna Müller", "licence": "CC-BY-4.0", "seconds": 2.0}
            bob = {"id": "bob", "label": "bob", "licence": None, "seconds": 0.8}
            assert listed == [{"id": "ada", **named}, bob, {"id": "anna", **named}]
            assert "consent" not in listed[0]
            voice = one.service.voices.codes_of("anna")
            assert voice is not None and torch.equal(voice, codes_QP)

    within(30, test())


def test_a_server_takes_no_clip_no_pickle_and_no_other_codecs_voice(voiced: Release, tmp_path: Path) -> None:
    voice = VoiceFile(id="a", label="a", consent="yes", codec="ab" * 32, codes_QP=torch.zeros(8, 9, dtype=torch.long))
    path = save_voice(tmp_path / "other", voice)
    with refused("bad-combination", path, "another codec"):
        read_voices(voiced, tmp_path / "other")
    for name, command in (("b.wav", "ppx-voice add"), ("b.pt", "ppx-voice convert")):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(b"x")
        with refused("old-form" if name == "b.wav" else "unreadable", tmp_path / name / name, command):
            read_voices(voiced, tmp_path / name)


def test_files_are_served_without_following_links(voiced: Release, tmp_path: Path) -> None:
    page = tmp_path / "page"
    page.mkdir()
    (page / "index.html").write_text("<p>page")
    (tmp_path / "secret").write_text("secret")
    (page / "link").symlink_to(tmp_path / "secret")

    async def test() -> None:
        async with live(voiced, static=page) as one:
            assert (await one.get("/"))[1] == "<p>page"
            for path in ("/link", "/../secret", "/%2e%2e/secret", "/..%2fsecret"):
                status, body = await one.get(path)
                assert status in (403, 404) and "secret" not in str(body)

    asyncio.run(test())
    with refused("not-found", "index.html"):
        ServeSettings(model="m", static=tmp_path).check()


def test_what_clients_may_ask_for_is_listed(voiced: Release) -> None:
    async def test() -> None:
        async with live(voiced) as one:
            listed = (await one.get("/api/voices"))[1]
            assert listed["default"] == "ada" and listed["voices"][0] == {
                "id": "ada", "label": "ada", "licence": None, "seconds": 0.72,
            }  # fmt: skip
            presets = (await one.get("/api/presets"))[1]["presets"]
            assert len(presets) >= 3 and all(preset["text_prompt"] for preset in presets)
            info = (await one.get("/api/info"))[1]
            assert info["sessions"] == 2 and info["active"] == 0 and info["warm_tick_ms"] > 0

    within(30, test())
