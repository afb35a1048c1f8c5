"""The options that `ppx-data import` and `annotate` share, and the settings that they ask for."""

# Shapes: C channels, S samples

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipelines.execution.executor import add_arguments as add_executor_arguments
from data_pipelines.recordings.clips import MAX_CLIP_SECONDS, MIN_CLIP_SECONDS
from data_pipelines.recordings.convert import ImportSettings
from data_pipelines.recordings.fill import Listener
from data_pipelines.recordings.transcripts import parse_json, read_text_file
from data_pipelines.recordings.windows import MIN_WINDOW_SECONDS
from data_pipelines.records.schema import SIDES, SOURCE_PATTERN, SPLITS
from data_pipelines.sound.audio import read_audio
from model.errors import UserError

HELDOUT = 0.1
MASK_HELP = "mask personal numbers and names in sound, words and prompts, by rules that miss some"


def add_common_arguments(parser: argparse.ArgumentParser, *, has_records: bool = False) -> None:
    """Adds the arguments that `import` shares with `annotate`; dialogue folders have records that name their source."""
    parser.add_argument("--out", type=Path, required=True, help="folder for the dialogues; resumed if it is ours")
    parser.add_argument("--source", required=not has_records, help="name of this source in the shards, e.g. dailytalk")
    parser.add_argument("--licence", required=not has_records, help="terms of the recordings, e.g. 'CC BY 4.0'")
    parser.add_argument("--agent", choices=("left", "right", "both"), default="left", help="who may be the agent")
    sided: dict[str, Any] = {"nargs": "+", "metavar": "X"}
    parser.add_argument("--role-prompt", **sided, help="the agent's role, for all: TEXT, or left=TEXT right=TEXT")
    parser.add_argument("--role-field", **sided, help="where a record has it: FIELD, or left=FIELD right=FIELD")
    parser.add_argument("--speaker-field", **sided, help="where a record names its speakers: left=FIELD right=FIELD")
    parser.add_argument("--speakers", type=Path, help='JSON file {"RECORDING": {"left": "name", "right": "name"}, ...}')
    parser.add_argument("--voice", **sided, help="voice clip of the agent, for all: left=FILE right=FILE")
    parser.add_argument("--voice-field", **sided, help="where a record has its voice clip: left=FIELD right=FIELD")
    parser.add_argument("--max-seconds", type=float, default=150.0, help="longest dialogue; a recording gives several")
    parser.add_argument("--voice-seconds", type=float, default=5.0, help="longest voice clip cut out (3-10)")
    parser.add_argument(
        "--fill", choices=("both", "agent", "none"), default="both", help="whose missing words are recognised"
    )
    parser.add_argument("--asr", default="tiny.en", help="recogniser: tiny.en, a folder, large-v3, parakeet:ORG/NAME")
    parser.add_argument("--device", default="cpu", help="where the recogniser runs: cpu (default), cuda, cuda:1")
    parser.add_argument(
        "--split", choices=("speaker", "recording", "train", "heldout"), default="speaker",
        help="what is held out: a share of the speakers (default) or of the recordings; or one split for all",
    )  # fmt: skip
    parser.add_argument("--heldout", type=float, default=HELDOUT, help="share that is held out (default: 0.1)")
    parser.add_argument("--seed", type=int, default=0, help="draws voice clips")
    parser.add_argument("--mask", action="store_true", help=MASK_HELP)
    parser.add_argument("--limit", type=int, help="read only the first N lines, files or tars")
    add_executor_arguments(parser)


def settings_of(args: argparse.Namespace) -> ImportSettings:
    """Returns the settings that the common options ask for. Raises UserError naming the option that is wrong."""
    if not SOURCE_PATTERN.fullmatch(args.source):
        raise UserError(f"--source {args.source!r}: use lower-case letters, digits and '_'", code="bad-value")
    if not args.licence.strip():
        raise UserError(
            "--licence '': say under which terms the recordings may be used, e.g. 'CC BY 4.0'", code="licence"
        )
    if not args.max_seconds >= MIN_WINDOW_SECONDS:
        raise UserError(f"--max-seconds {args.max_seconds:g}: must be {MIN_WINDOW_SECONDS:g} or more", code="bad-value")
    if not MIN_CLIP_SECONDS <= args.voice_seconds <= MAX_CLIP_SECONDS:
        raise UserError(f"--voice-seconds {args.voice_seconds:g}: a voice clip lasts 3 to 10 s", code="bad-value")
    if not 0 <= args.heldout <= 1:
        raise UserError(f"--heldout {args.heldout:g}: give a share from 0 to 1", code="bad-value")
    if args.split in SPLITS and args.heldout != HELDOUT:
        raise UserError(
            f"--heldout has no effect with --split {args.split}, which takes all: leave it out",
            code="bad-combination",
        )
    for option, other in (("voice", "voice_field"), ("speakers", "speaker_field")):
        if getattr(args, option) and getattr(args, other):
            raise UserError(
                f"--{option} and --{other.replace('_', '-')} say the same: give one of them", code="bad-combination"
            )
    for option in ("voice", "voice_field"):
        if args.mask and getattr(args, option):
            flag = f"--{option.replace('_', '-')}"
            raise UserError(
                f"--mask and {flag}: nobody listens to these clips, so names in them would stay; leave out {flag}, and "
                "clips are cut from what was masked",
                code="bad-combination",
            )
    agents = SIDES if args.agent == "both" else (args.agent,)
    voices = by_side("--voice", args.voice, agents)
    for side, name in voices.items():
        audio_CS, rate = read_audio(Path(name))
        if audio_CS.shape[1] < MIN_CLIP_SECONDS * rate:
            raise UserError(
                f"--voice {side}={name}: lasts {audio_CS.shape[1] / rate:.1f} s, a voice clip 3 s or more",
                code="bad-audio",
            )
    return ImportSettings(
        source=args.source,
        licence=args.licence.strip(),
        agents=agents,
        role_prompts=by_side("--role-prompt", args.role_prompt, agents),
        role_fields=by_side("--role-field", args.role_field, agents),
        speaker_fields=by_side("--speaker-field", args.speaker_field, SIDES),
        voices=voices,
        voice_fields=by_side("--voice-field", args.voice_field, agents),
        speakers=_speakers(args.speakers),
        max_seconds=args.max_seconds,
        voice_seconds=args.voice_seconds,
        fill=args.fill,
        listener=listener_of(args),
        split_by=args.split,
        heldout=args.heldout,
        seed=args.seed,
        mask=args.mask,
    )


def listener_of(args: argparse.Namespace) -> Listener:
    """Returns who recognises what is missing. Raises UserError for --asr '', which elsewhere forbids to listen."""
    if not args.asr:
        raise UserError("--asr '': name a recogniser, e.g. tiny.en, or give --fill none", code="bad-value")
    return Listener(asr=args.asr, device=args.device)


def check_limit(limit: int | None) -> None:
    """Raises UserError for a --limit that leaves nothing."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: must be 1 or more", code="bad-value")


def by_side(option: str, words: Sequence[str] | None, sides: Sequence[str] = ()) -> dict[str, str]:
    """Parses left=X right=Y into a mapping; a single X stands for all of `sides`, or for "" without `sides`.

    Raises: UserError if a side is named twice or has no use for its value.
    """
    if not words:
        return {}
    given = f"{option} {' '.join(words)}"
    named = [word.partition("=") for word in words if word.split("=", 1)[0] in SIDES and "=" in word]
    if not named:
        if len(words) > 1:
            raise UserError(f"{given}: give one value, in quotes if it has spaces, or left=X right=Y", code="bad-value")
        return dict.fromkeys(sides or ("",), words[0])
    found = {side: value for side, _, value in named}
    if len(named) < len(words) or len(found) < len(named) or not all(found.values()):
        raise UserError(f"{given}: give left=X, right=Y, or both", code="bad-value")
    if not sides and len(found) == 1:
        raise UserError(f"{given}: give both sides, or one value for both", code="bad-value")
    if sides and (strange := set(found) - set(sides)):
        raise UserError(f"{option} {min(strange)}=...: that side is no agent (see --agent)", code="bad-combination")
    return found


def _speakers(path: Path | None) -> dict[str, dict[str, str]]:
    """Reads the names of the speakers by recording and side."""
    if path is None:
        return {}
    table = parse_json(read_text_file(path), str(path))
    if not isinstance(table, dict) or not all(
        isinstance(row, dict) and set(row) <= set(SIDES) and all(isinstance(name, str) for name in row.values())
        for row in table.values()
    ):
        raise UserError(
            f'--speakers {path}: not {{"RECORDING": {{"left": "name", "right": "name"}}, ...}}', code="bad-record"
        )
    return table
