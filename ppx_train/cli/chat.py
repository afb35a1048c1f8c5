"""`ppx-chat --model DIR --input-wav in.wav ...`: holds conversations with a model, frame by frame as in live calls.

With `--server URL` the model is that of a server that runs, with `--out DIR` there are many conversations at once, with
`--replay JSON` a call from the server's web page is held again.
Options and outputs follow the published PersonaPlex tool, with a picture of the conversation beside them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipelines.arguments import Parser, add_version
from ppx_train import __version__
from ppx_train.cli.run import run
from ppx_train.inference.chat_settings import BATCH, ROLE, SCRIPT_TAIL, ChatSettings
from ppx_train.inference.model_options import add_model_options

if TYPE_CHECKING:
    from ppx_train.inference.timeline import AgentWord

DIFFERENT, FAULTY = 1, 3
"""The exit codes of `--replay` if the agent says something else, and of `--gate` if an agent has a fault."""


def main() -> None:
    """The entry point of the command."""
    run(command)


def parser() -> Parser:
    """The parser of the command's words."""
    parser = Parser(prog="ppx-chat", description="Holds conversations with a model, frame by frame as in live calls.")
    add, default = parser.add_argument, ChatSettings
    add("--model", metavar="DIR", help="folder made by ppx-export, or a hub repository (no default)")
    add("--server", metavar="URL", help="a server, such as http://127.0.0.1:8998, instead (no default)")
    add("--token", metavar="TEXT", help="what the server wants to be shown (default: none)")
    add_model_options(parser)
    add(
        "--replay", type=Path, metavar="JSON",
        help="instead: the settings that the web page kept of a call, which is held again (no default)",
    )  # fmt: skip
    _add_user(parser)
    add("--output-wav", type=Path, metavar="WAV", help="the agent's audio to write, mono 24 kHz (no default)")
    add(
        "--output-text", type=Path, metavar="JSON",
        help="text to write, one entry a frame of 80 ms (default: beside --output-wav, .json)",
    )  # fmt: skip
    add("--timeline", type=Path, metavar="PNG", help="picture to write (default: beside --output-wav, .png)")
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="instead: folder for many chats, every role with every voice (no default)",
    )
    add(
        "--text-prompt", dest="text_prompts", action="append", metavar="TEXT", default=[],
        help=f'role of the agent; "" for none; with --out it may be repeated (default: {ROLE})',
    )  # fmt: skip
    add("--roles", type=Path, metavar="FILE", help="with --out: a file with one role on each line (default: none)")
    add(
        "--voice-prompt", metavar="NAME|FILE",
        help='a voice of the model, a voice file or audio of 3 to 10 s; "none" for none (default: first voice)',
    )  # fmt: skip
    add("--voices", metavar="A,B,C", default="", help="with --out: several of them (default: that of --voice-prompt)")
    add(
        "--voice-prompt-dir", type=Path, metavar="DIR",
        help="look the voice up in this folder (default: the model's voices)",
    )  # fmt: skip
    add("--batch", type=int, metavar="N", help=f"with --out: chats at a time (default: {BATCH})")
    add("--seed", type=int, default=default.seed, help="same seed, same conversation; -1 is a new one each time")
    add("--temp-audio", type=float, metavar="T", default=default.temp_audio, help="temperature of audio tokens")
    add("--temp-text", type=float, metavar="T", default=default.temp_text, help="temperature of text tokens")
    add("--topk-audio", type=int, metavar="K", default=default.topk_audio, help="draw from K audio tokens; 0 from all")
    add("--topk-text", type=int, metavar="K", default=default.topk_text, help="draw from K text tokens; 0 from all")
    add("--greedy", action="store_true", help="take the likeliest token each time, without drawing")
    add("--gate", action="store_true", help=f"exit with code {FAULTY} if an agent is silent, never stops, ...")
    add("--overwrite", action="store_true", help="replace outputs that exist")
    add_version(parser, __version__)
    return parser


def _add_user(parser: Parser) -> None:
    """The options of who speaks to the agent."""
    add = parser.add_argument
    add("--input-wav", type=Path, metavar="WAV", help="the user's audio, of any rate and channels (no default)")
    add(
        "--say", action="append", metavar="TEXT", default=[],
        help="instead: what a synthetic voice says to the agent; may be repeated for more turns (no default)",
    )  # fmt: skip
    add(
        "--script", type=Path, metavar="YAML",
        help="instead: a file of turns that wait for the agent or interrupt it (no default)",
    )  # fmt: skip
    add("--mic", action="store_true", help="instead: the microphone, until Ctrl-C; the agent is heard meanwhile")
    add("--user-voice", metavar="NAME", help="voice of --say and --script, such as kokoro/af_kore (default: any)")
    add(
        "--tail", type=float, metavar="S",
        help=f"seconds for which the user listens at the end (default: {SCRIPT_TAIL:g}, and 0 after --input-wav)",
    )  # fmt: skip


def command(words: Sequence[str]) -> int:
    """Holds the conversations and prints what came of them; returns the exit code."""
    given = vars(parser().parse_args(words))
    voices = given.pop("voices")
    settings = ChatSettings(
        voices=tuple(name.strip() for name in voices.split(",")) if voices else (),
        say=tuple(given.pop("say")),
        text_prompts=tuple(given.pop("text_prompts")),
        **given,
    )
    settings.check()
    if settings.replay is not None:
        return _hold_again(settings)
    if settings.server is not None:
        return _ask_server(settings)
    faulty = _chat_many(settings) if settings.out is not None else _load_and_chat(settings)
    return FAULTY if faulty and settings.gate else 0


def _ask_server(settings: ChatSettings) -> int:
    from ppx_train.serve.file_chat import converse_with_server

    talk = converse_with_server(settings, show_progress=True)
    said = talk.words()
    print(
        f"{settings.output_wav}: {talk.seconds:.1f} s, {_first(said)}, the server was ready after "
        f"{talk.ready_seconds:.2f} s"
    )
    if talk.goodbye:
        print(f"the server ended the call: {talk.goodbye}")
    _print_words(said)
    return 0


def _hold_again(settings: ChatSettings) -> int:
    from ppx_train.serve.replay import hold_again

    found = hold_again(settings, show_progress=True)
    print(found)
    for why in found.reasons:
        print(f"why that may be: {why}")
    return 0 if found.is_equal else DIFFERENT


def _load_and_chat(settings: ChatSettings) -> bool:
    from ppx_train.inference.chat_files import converse, prepare
    from ppx_train.inference.verdicts import judge

    prepared = prepare(settings)
    release = prepared.release
    print(f"{release.name} on {release.device}: voice {prepared.voice}, prompt of {prepared.prompt_seconds:.1f} s")
    if settings.mic:
        print("speak; Ctrl-C ends the conversation")
    agent = converse(prepared, show_progress=not settings.mic)
    said = agent.words(release.tokenizer)
    speed = f"{agent.real_time_factor:.2f} x real time, prompt in {agent.prompt_seconds:.2f} s"
    print(f"{settings.output_wav}: {agent.seconds:.1f} s, {_first(said)}, {speed}")
    if agent.clipped_share > 0:
        print(f"{agent.clipped_share:.2%} of the samples were clipped")
    _print_words(said)
    judgement = judge(agent, said)
    print(f"sanity: {judgement}")
    return bool(judgement.failed)


def _chat_many(settings: ChatSettings) -> bool:
    from ppx_train.inference.chat_files import shorten
    from ppx_train.inference.chat_grid import PAGE, run_grid

    found = run_grid(settings, show_progress=True)
    for chat in found:
        role = f'"{shorten(chat.role, 40)}"' if chat.role else "no role"
        print(f"{chat.number:3d} voice {chat.voice}, {role}, {chat.seconds:.1f} s: {chat.judgement}")
    faulty = sum(bool(chat.judgement.failed) for chat in found)
    assert settings.out is not None
    print(f"{len(found) - faulty} of {len(found)} chats without a fault: {settings.out / PAGE}")
    return bool(faulty)


def _first(said: Sequence["AgentWord"]) -> str:
    return f"first word after {said[0].seconds:.2f} s" if said else "no word"


def _print_words(said: Sequence["AgentWord"]) -> None:
    from ppx_train.inference.chat_files import shorten
    from ppx_train.inference.timeline import printable

    if said:
        print("agent: " + shorten(printable(" ".join(word.text for word in said)), 400))
