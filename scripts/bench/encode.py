"""Speed of the encoding pass of `ppx-data shard` against the bare codec on the same audio, in turns in one run.

    python scripts/bench/encode.py --dialogues DIR --codec small full --json figures.json

The pass reads and judges FLAC files, normalises voice prompts, encodes, checks and stores codes; the bare codec gets
the same arrays, one channel at a time. `full` is Mimi at full size with random weights.
"""

# Shapes: C channels, S samples

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import in_turns, machine, table, write_json

from data_pipelines.records.folder import find_dialogues, load_dialogue, rejections
from data_pipelines.shards.encode import dialogue_audio, encode_folder, voice_prompt
from data_pipelines.shards.members import clip_name
from data_pipelines.sound.audio import read_audio
from model.mimi.codec import Mimi
from model.mimi.config import MimiConfig
from model.mimi.files import load_mimi
from model.weights.sources import codec_path


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    passed = [folder for folder in find_dialogues([args.dialogues]) if not rejections(folder)]
    folders = passed[: args.num]
    seconds = sum(load_dialogue(folder).seconds for folder in folders)
    rows = [measure(name, open_codec(name), folders, args.rounds) for name in args.codec]
    print(machine("cpu"))
    print(f"{len(folders)} dialogues, {seconds:.0f} s of two channels; the best of {args.rounds} rounds each\n")
    print(table(rows))
    write_json(args.json, {"machine": machine("cpu"), "dialogues": len(folders), "seconds": seconds, "rows": rows})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogues", type=Path, required=True, help="folder of dialogues, e.g. from `ppx-data speak`")
    parser.add_argument("--num", type=int, default=4, help="dialogues to encode in each round")
    parser.add_argument("--codec", nargs="+", default=["small", "full"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def open_codec(name: str) -> Mimi:
    return Mimi(MimiConfig.full()).eval() if name == "full" else load_mimi(codec_path(name)).eval()


def channels(folder: Path) -> list[torch.Tensor]:
    """What the codec gets of one dialogue: [1, 1, S] for each channel and voice prompt."""
    dialogue = load_dialogue(folder)
    clips = [folder / clip_name(side) for side in dialogue.agent_sides]
    prompts = [voice_prompt(*read_audio(clip), str(clip)) for clip in clips]
    wavs = (dialogue_audio(folder, dialogue), *prompts)
    return [torch.from_numpy(np.ascontiguousarray(wav_S))[None, None] for wav_CS in wavs for wav_S in wav_CS]


def measure(name: str, codec: Mimi, folders: list[Path], rounds: int) -> dict[str, Any]:
    """One row: CPU seconds of both, summed over the dialogues, each the best of its rounds; and their ratio."""
    passed = bare = seconds = 0.0
    with tempfile.TemporaryDirectory(prefix="encode-") as work:
        for folder in folders:
            best = in_turns(calls(codec, folder, Path(work)), rounds)
            passed, bare = passed + min(best["pass"]), bare + min(best["bare"])
            seconds += load_dialogue(folder).seconds
    return {
        "codec": name, "pass, s": passed, "bare, s": bare, "ratio": passed / bare,
        "dialogue audio x real time": seconds / passed,
    }  # fmt: skip


def calls(codec: Mimi, folder: Path, work: Path) -> dict[str, Callable[[], Any]]:
    """The two pieces of work on one dialogue."""
    audio = channels(folder)

    def pass_one() -> None:
        for path in work.iterdir():
            path.unlink()  # or it would be taken for done
        done = encode_folder(folder, codec=codec, fingerprint="bench", work=work)
        assert done.item, done.reason

    @torch.inference_mode()
    def bare() -> None:
        for wav in audio:
            codec.encode(wav)

    return {"pass": pass_one, "bare": bare}


if __name__ == "__main__":
    main()
