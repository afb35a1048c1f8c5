"""`ppx-data extract`: writes one stored dialogue as files to listen to and to chat with."""

# Shapes: C channels, S samples

import argparse
from pathlib import Path

from data_pipelines.shards.index import ShardReader
from data_pipelines.shards.manifest import stated_index
from data_pipelines.sound.audio import write_flac
from model.errors import UserError
from model.files import write_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ppx-data extract`."""
    parser.add_argument("split", metavar="SHARDS/SPLIT", help="folder or URL, e.g. shards/heldout")
    parser.add_argument("--id", help="id of the dialogue (default: the first of --source)")
    parser.add_argument("--source", help="take the first dialogue of this source, e.g. service")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")


def run(args: argparse.Namespace) -> None:
    """Writes DIR/user.flac, agent.flac, voice.flac (the agent's voice prompt), role.txt and meta.json of one sample.

    Raises: UserError if DIR exists, or no sample has this id and source.
    """
    if args.out.exists():
        raise UserError(f"{args.out} exists: choose another --out", code="exists")
    reader = ShardReader(args.split, stated_index(args.split))
    fitting = [
        at for at, row in enumerate(reader.rows) if args.id in (None, row.id) and args.source in (None, row.source)
    ]
    if not fitting:
        wanted = " and ".join(repr(name) for name in (args.id, args.source) if name)
        some = ", ".join(dict.fromkeys(f"{row.source} {row.id}" for row in reader.rows[:6]))
        raise UserError(f"{args.split} has no sample of {wanted}: it begins with {some}", code="unknown-name")
    row, dialogue = reader.rows[fitting[0]], reader.dialogue(fitting[0])
    (audio_CS, rate), clip = reader.audio(fitting[0]), reader.voice_clip(fitting[0])
    agent, user = audio_CS if row.side == "left" else audio_CS[::-1]
    args.out.mkdir(parents=True)
    write_flac(args.out / "user.flac", user, rate)
    write_flac(args.out / "agent.flac", agent, rate)
    write_flac(args.out / "voice.flac", *clip)
    write_bytes(args.out / "role.txt", dialogue.side(row.side).role_prompt.encode())
    write_bytes(args.out / "meta.json", dialogue.to_json().encode())
    print(f"{args.out}: {row.id}, agent on the {row.side}, {dialogue.seconds:.1f} s")
