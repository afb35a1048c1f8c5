"""`ppx-chat --model DIR --input-wav in.wav ...`: streams a WAV through a model, frame by frame as in a live call.

With `--server URL` the model is that of a server that runs. Options and outputs follow the published PersonaPlex tool,
with a picture of the conversation beside them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipelines.arguments import Parser, add_version
from ppx_train import __version__
from ppx_train.cli.run import run
from ppx_train.inference.chat_settings import ChatSettings

if TYPE_CHECKING:
    from ppx_train.inference.timeline import AgentWord


def main() -> None:
    """The entry point of the command."""
    run(command)


def parser() -> Parser:
    """The parser of the command's words."""
    parser = Parser(prog="ppx-chat", description="Streams a WAV through a model, frame by frame as in a live call.")
    add, default = parser.add_argument, ChatSettings
    add("--model", metavar="DIR", help="folder made by ppx-export, or a hub repository (no default)")
    add("--server", metavar="URL", help="a server, such as http://127.0.0.1:8998, instead (no default)")
    add("--token", metavar="TEXT", help="what the server wants to be shown (default: none)")
    add("--revision", metavar="REV", help="revision of the hub repository (default: its main branch)")
    add("--input-wav", type=Path, required=True, metavar="WAV", help="the user's audio, of any rate and channels")
    add("--output-wav", type=Path, required=True, metavar="WAV", help="the agent's audio to write, mono 24 kHz")
    add(
        "--output-text", type=Path, metavar="JSON",
        help="text to write, one entry a frame of 80 ms (default: beside --output-wav, .json)",
    )  # fmt: skip
    add("--timeline", type=Path, metavar="PNG", help="picture to write (default: beside --output-wav, .png)")
    add("--text-prompt", metavar="TEXT", default=default.text_prompt, help='role of the agent; "" for none')
    add(
        "--voice-prompt", metavar="NAME|FILE",
        help='a voice of the model, a voice file or audio of 3 to 10 s; "none" for none (default: first voice)',
    )  # fmt: skip
    add(
        "--voice-prompt-dir", type=Path, metavar="DIR",
        help="look the voice up in this folder (default: the model's voices)",
    )  # fmt: skip
    add("--seed", type=int, default=default.seed, help="same seed, same conversation; -1 is a new one each time")
    add("--temp-audio", type=float, metavar="T", default=default.temp_audio, help="temperature of audio tokens")
    add("--temp-text", type=float, metavar="T", default=default.temp_text, help="temperature of text tokens")
    add("--topk-audio", type=int, metavar="K", default=default.topk_audio, help="draw from K audio tokens; 0 from all")
    add("--topk-text", type=int, metavar="K", default=default.topk_text, help="draw from K text tokens; 0 from all")
    add("--greedy", action="store_true", help="take the likeliest token each time, without drawing")
    add("--device", help="where to compute: cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    add("--overwrite", action="store_true", help="replace outputs that exist")
    add_version(parser, __version__)
    return parser


def command(words: Sequence[str]) -> None:
    """Holds the conversation and prints what came of it."""
    settings = ChatSettings(**vars(parser().parse_args(words)))
    if settings.server is not None:
        _ask_server(settings)
    else:
        _load_and_chat(settings)


def _ask_server(settings: ChatSettings) -> None:
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


def _load_and_chat(settings: ChatSettings) -> None:
    from ppx_train.inference.chat_files import converse, prepare

    prepared = prepare(settings)
    release = prepared.release
    print(f"{release.name} on {release.device}: voice {prepared.voice}, prompt of {prepared.prompt_seconds:.1f} s")
    agent = converse(prepared, show_progress=True)
    said = agent.words(release.tokenizer)
    speed = f"{agent.real_time_factor:.2f} x real time, prompt in {agent.prompt_seconds:.2f} s"
    print(f"{settings.output_wav}: {prepared.user_seconds:.1f} s, {_first(said)}, {speed}")
    if agent.clipped_share > 0:
        print(f"{agent.clipped_share:.2%} of the samples were clipped")
    _print_words(said)


def _first(said: Sequence["AgentWord"]) -> str:
    return f"first word after {said[0].seconds:.2f} s" if said else "no word"


def _print_words(said: Sequence["AgentWord"]) -> None:
    from ppx_train.inference.chat_files import shorten
    from ppx_train.inference.timeline import printable

    if said:
        print("agent: " + shorten(printable(" ".join(word.text for word in said)), 400))
