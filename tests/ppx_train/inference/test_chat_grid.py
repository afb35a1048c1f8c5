"""`ppx-chat --out`: many conversations in one batch, stopped and resumed, and what is refused."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from model.errors import Code
from model.streaming.sample import Sampling
from ppx_train.cli import chat as chat_command
from ppx_train.inference import chat_files, chat_grid
from ppx_train.inference.chat_record import read_chat
from ppx_train.inference.chat_settings import ChatSettings
from ppx_train.inference.loading import Release, find_voice
from ppx_train.inference.offline import AgentSide, PlannedChat, chat, chats
from ppx_train.inference.session import SessionSettings
from ppx_train.inference.user_side import ScriptedUser, UserSide, UserTurn
from tests.ppx_train.inference.noise import noise
from tests.ppx_train.inference.scenes import scene, syllables
from tests.refusals import refused

SAMPLING = Sampling(text_top_k=25, audio_top_k=64)
ROLES = ("You are Jane.", "")


@pytest.fixture(autouse=True)
def loaded(release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    """The small model with two voices, loaded once; tests work in an empty folder."""
    for number, name in enumerate(("anna", "ben")):
        path = tmp_path / "voices" / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        codes_QP = torch.randint(64, (8, 6), generator=torch.Generator().manual_seed(number), dtype=torch.int32)
        save_file({"codes": codes_QP}, path)
        monkeypatch.setitem(release.voices, name, path)
    monkeypatch.setattr(chat_files, "load_release", lambda *_, **__: release)
    soundfile.write(tmp_path / "user.wav", noise(0.6, seed=3), 24000)
    monkeypatch.chdir(tmp_path)
    return release


def settings(**changes: Any) -> ChatSettings:
    fixed = {"out": Path("chats"), "model": "tiny", "input_wav": Path("user.wav"), "seed": 4, "topk_audio": 64}
    found = ChatSettings(**{**fixed, "text_prompts": ROLES, "voices": ("anna", "ben"), **changes})
    found.check()
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_batch_gives_each_conversation_what_it_gets_alone(release: Release) -> None:
    turns = [
        UserTurn(text="hello", audio_S=syllables(0.5, seed), when="at", seconds=0.16 * (seed + 1)) for seed in range(3)
    ]
    planned = [
        PlannedChat(
            settings=SessionSettings(prompt_KP=release.prompt(None, role), sampling=SAMPLING, seed=seed),
            user=ScriptedUser(turns[: seed + 1], tail=0.16 * (2 - seed)),
        )
        for seed, role in enumerate(("You are Jane.", "", "You are Jane."))
    ]
    made = dict(chats(release, planned, slots=2, sampling=SAMPLING))
    assert sorted(made) == [0, 1, 2] and len({agent.codes_AT.shape[1] for agent in made.values()}) == 3
    for number, agent in made.items():
        of = planned[number].settings
        alone = chat(release, agent.user_S, prompt_KP=of.prompt_KP, sampling=SAMPLING, seed=of.seed)
        assert torch.equal(alone.codes_AT, agent.codes_AT)
        np.testing.assert_allclose(alone.agent_S, agent.agent_S, rtol=1e-3, atol=1e-3)


def test_every_role_with_every_voice_is_written(release: Release) -> None:
    found = chat_grid.run_grid(settings(batch=3))
    assert [(c.number, c.role, c.voice) for c in found] == [
        (1, "You are Jane.", "anna"), (2, "You are Jane.", "ben"), (3, "", "anna"), (4, "", "ben"),
    ]  # fmt: skip
    user_S = soundfile.read("user.wav", dtype="float32")[0]
    for record in found:
        prompt = release.prompt(find_voice(release, record.voice), record.role)
        alone = chat(release, user_S, prompt_KP=prompt, sampling=Sampling(audio_top_k=64), seed=4)
        assert list(record.pieces) == alone.pieces(release.tokenizer)
        both_SC, rate = soundfile.read(f"chats/chat-{record.number:03d}.wav", dtype="float32")
        assert rate == 24000 and both_SC.shape[1] == 2
        np.testing.assert_allclose(both_SC[: len(user_S), 1], user_S.clip(-1, 1), atol=1e-4)
        np.testing.assert_allclose(both_SC[: len(user_S), 0], alone.agent_S.clip(-1, 1), atol=1e-3)
        assert read_chat(Path("chats"), record.number) == record
    assert sorted(contents(Path("chats"))) == sorted(
        [*(f"chat-{n:03d}.{end}" for n in range(1, 5) for end in ("wav", "json")), "chats.json", "index.html"]
    )


@pytest.mark.parametrize("seed", [4, -1])
def test_a_run_that_is_stopped_goes_on_and_ends_as_if_it_had_not_been(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    written: list[int] = []

    def stop_at_third(out: Path, record: Any, *sound: Any) -> None:
        if len(written) == 2 and out.name == "stopped":
            raise KeyboardInterrupt
        written.append(record.number)
        write(out, record, *sound)

    write = chat_grid.write_chat
    monkeypatch.setattr(chat_grid, "write_chat", stop_at_third)
    monkeypatch.setattr(chat_grid.secrets, "randbelow", lambda most: 77)
    with pytest.raises(KeyboardInterrupt):
        chat_grid.run_grid(settings(out=Path("stopped"), batch=2, seed=seed))
    assert not Path("stopped/index.html").exists() and len(written) == 2
    monkeypatch.setattr(chat_grid, "write_chat", write)
    monkeypatch.setattr(chat_grid.secrets, "randbelow", lambda most: 78)
    planned: list[int] = []

    def counted(release: Release, todo: Sequence[PlannedChat], **more: Any) -> Iterator[tuple[int, AgentSide]]:
        planned.append(len(todo))
        return chats(release, todo, **more)

    monkeypatch.setattr(chat_grid, "chats", counted)
    chat_grid.run_grid(settings(out=Path("stopped"), batch=2, seed=seed))
    monkeypatch.setattr(chat_grid.secrets, "randbelow", lambda most: 77)
    chat_grid.run_grid(settings(out=Path("whole"), batch=2, seed=seed))
    assert contents(Path("stopped")) == contents(Path("whole")) and planned == [2, 4]
    before = contents(Path("whole"))
    chat_grid.run_grid(settings(out=Path("whole"), batch=2, seed=seed))
    assert contents(Path("whole")) == before and planned == [2, 4, 0]


def test_a_folder_of_other_settings_or_others_is_left_alone() -> None:
    one = {"text_prompts": ("You are Jane.",), "voices": ("anna",)}
    chat_grid.run_grid(settings(**one))
    before = contents(Path("chats"))
    for change, named in (({"seed": 5}, "seed"), ({"voices": ("ben",)}, "voices"), ({"tail": 1.0}, "user")):
        with refused("other-settings", "chats was made with", named):
            chat_grid.run_grid(settings(**{**one, **change}))
    assert contents(Path("chats")) == before
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    with refused("exists", "mine exists"):
        chat_grid.run_grid(settings(out=Path("mine")))
    with refused("exists", "user.wav"):
        chat_grid.run_grid(settings(out=Path("user.wav")))
    assert [path.name for path in Path("mine").iterdir()] == ["notes.txt"]


def test_damaged_records_are_named() -> None:
    one = settings(text_prompts=("",), voices=("anna",))
    chat_grid.run_grid(one)
    record = Path("chats/chat-001.json")
    whole = record.read_text("utf-8")
    record.write_text(whole.replace('"seed": 4', '"seed": "four"'))
    with refused("bad-record", record, "seed"):
        chat_grid.run_grid(one)
    record.write_text(json.dumps({**json.loads(whole), "number": 2}))
    with refused("bad-record", record, "chat 2"):
        chat_grid.run_grid(one)
    record.write_text(whole)
    Path("chats/chat-001.wav").write_bytes(b"RIFF")
    with refused("unreadable", "chat-001.wav"):
        chat_grid.run_grid(one)
    Path("chats/chats.json").write_text("[]")
    with refused("bad-record", "chats.json"):
        chat_grid.run_grid(one)


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        ({"voices": ("anna", "zoe")}, "unknown-name", "voice zoe"),
        ({"input_wav": Path("none.wav")}, "not-found", "none.wav"),
        ({"input_wav": None, "script": Path("none.yaml")}, "not-found", "none.yaml"),
        ({"text_prompts": (), "roles": Path("none.txt")}, "not-found", "none.txt"),
        ({"text_prompts": (), "roles": Path("user.wav")}, "unreadable", "user.wav"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_written(
    change: dict[str, Any], code: Code, named: str
) -> None:
    with refused(code, named):
        chat_grid.run_grid(settings(**change))
    assert not Path("chats").exists()


def test_roles_are_the_lines_of_a_file() -> None:
    Path("roles.txt").write_text("\ufeff# for the desk\nYou are Jane.\n\n  You are Tom.  \nYou are Jane.\n", "utf-8")
    assert chat_grid.roles_of(settings(text_prompts=(), roles=Path("roles.txt"))) == ("You are Jane.", "You are Tom.")
    Path("roles.txt").write_text("# none\n")
    with refused("no-data", "roles.txt"):
        chat_grid.roles_of(settings(text_prompts=(), roles=Path("roles.txt")))


WORDS = ["--model", "tiny", "--input-wav", "user.wav", "--out", "chats", "--text-prompt", "", "--voices", "anna,ben"]


def test_the_exit_code_gates_an_agent_with_a_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes = [scene(12.0)[0], scene(12.0, agent=(), words=())[0]]

    def made(release: Release, planned: Sequence[PlannedChat], **_: Any) -> Iterator[tuple[int, AgentSide]]:
        return iter([(n, scenes[n]) for n in range(len(planned))])

    monkeypatch.setattr(chat_grid, "chats", made)
    assert chat_command.command([*WORDS, "--gate"]) == 3
    printed = capsys.readouterr().out
    assert "voice anna, no role, 12.0 s: ok" in printed and "voice ben, no role, 12.0 s: fails: silent" in printed
    assert "1 of 2 chats without a fault: chats/index.html" in printed
    assert chat_command.command(WORDS) == 0
    scenes[1] = scenes[0]
    assert chat_command.command([*WORDS[:5], "fine", *WORDS[6:], "--gate"]) == 0


def test_one_conversation_is_judged_and_gated_too(capsys: pytest.CaptureFixture[str]) -> None:
    """The random codec of the small model makes nothing but clipped noise."""
    line = ["--model", "tiny", "--input-wav", "user.wav", "--seed", "1", "--topk-audio", "64", "--output-wav"]
    assert chat_command.command([*line, "a.wav"]) == 0
    assert chat_command.command([*line, "b.wav", "--gate"]) == 3
    assert capsys.readouterr().out.count("sanity: fails: ") == 2


def test_turns_can_be_said_by_a_synthetic_voice(capsys: pytest.CaptureFixture[str]) -> None:
    script = Path("caller.yaml")
    script.write_text('- {say: "Hello.", at: 0}\n- {wav: user.wav, at: 1}\n')
    user = ["--script", "caller.yaml", "--user-voice", "espeak/en-us+m1", "--tail", "0.16"]
    chat_command.command(["--model", "tiny", *user, "--output-wav", "out.wav", "--topk-audio", "64"])
    seconds = soundfile.info("out.wav").duration
    assert seconds == pytest.approx(0.96 + 0.64 + 0.16, abs=0.09) and "out.wav: 1." in capsys.readouterr().out


def test_a_user_side_is_made_anew_for_each_conversation() -> None:
    turn = UserTurn(text="hello", audio_S=syllables(0.2), when="at", seconds=0.0)
    from ppx_train.inference.chat_user import ChatUser

    user = ChatUser(turns=[turn], tail=0.0)
    lengths = []
    for side in (user.side(), user.side()):
        assert isinstance(side, ScriptedUser)
        lengths.append(_frames(side))
    assert lengths == [3, 3]


def _frames(side: UserSide) -> int:
    count = 0
    while side.next(None) is not None:
        count += 1
    return count
