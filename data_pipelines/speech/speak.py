"""`ppx-data speak`: scripts to dialogue folders (see data_pipelines.records.schema), on several processes, resumable.

OUT/speak.json states the settings of the run; a rerun with the same settings resumes it, one with others is
refused. OUT/report.json counts what is done and rejected, and why.
"""

# Shapes: C channels, S samples

import argparse
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipelines.arguments import add_old_flag
from data_pipelines.execution.executor import Executor, executor_of
from data_pipelines.execution.executor import add_arguments as add_executor_arguments
from data_pipelines.files import claim_folder, digest, write_line, write_report
from data_pipelines.quality import limits
from data_pipelines.records.schema import ID_PATTERN, Dialogue, Script, read_scripts
from data_pipelines.sound.audio import RATE_HZ, write_flac
from data_pipelines.speech.augment import load_augmentation
from data_pipelines.speech.engines import NAMES, USED, EngineChoice, choose_engine, open_engine
from data_pipelines.speech.protocols import ConversationEngine, Engine, EngineGone
from data_pipelines.speech.stitch import PROMPTS, StitchOptions, stitch
from data_pipelines.speech.timing import load_timing
from model.errors import UserError

AnyEngine = Engine | ConversationEngine


@dataclass(kw_only=True, frozen=True)
class SpokenScript:
    """The result of one script: seconds of audio, or the reason why there is no dialogue."""

    id: str
    seconds: float = 0.0
    reason: str = ""


def spoken_seconds(script: Script, folder: Path) -> float | None:
    """Returns the seconds of a dialogue folder whose record and audio files are there; None if it is incomplete.

    Raises: UserError if it was spoken from another script of the same id.
    """
    try:
        dialogue = Dialogue.from_json((folder / "meta.json").read_text("utf-8"), str(folder))
    except (OSError, UserError):
        return None
    if dialogue.provenance.get("script_sha256") != digest(script.to_json()):
        raise UserError(
            f"{folder} was spoken from another script of that id: give another --out, or the same --scripts",
            code="other-settings",
        )
    return dialogue.seconds if all((folder / name).is_file() for name in ("audio.flac", "left.voice.flac")) else None


def speak_one(script: Script, engine: AnyEngine, seed: int, options: StitchOptions, out: Path) -> SpokenScript:
    """Speaks one script into OUT/ID; meta.json comes last, so that a folder with it is complete."""
    try:
        result = stitch(script, engine, seed, options)
    except EngineGone:
        raise
    except UserError as why:
        return SpokenScript(id=script.id, reason=str(why).removeprefix(f"{script.id}: "))
    folder = out / script.id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meta.json").unlink(missing_ok=True)
    write_flac(folder / "audio.flac", result.audio_CS, RATE_HZ)
    write_flac(folder / "left.voice.flac", result.voice, RATE_HZ)
    write_line(folder / "meta.json", result.dialogue.to_json())
    return SpokenScript(id=script.id, seconds=result.dialogue.seconds)


@lru_cache(maxsize=1)
def shared_engine(choice: EngineChoice) -> AnyEngine:
    """The one engine of this process: loading Kokoro takes most of a second."""
    engine: AnyEngine = open_engine(choice)
    return engine


def _identity(engine: EngineChoice) -> dict[str, Any]:
    return shared_engine(engine).identity()


def _work(script: Script, engine: EngineChoice, seed: int, options: StitchOptions, out: Path) -> SpokenScript:
    return speak_one(script, shared_engine(engine), seed, options, out)


def settings_of(options: StitchOptions) -> dict[str, Any]:
    """Returns what decides the result, for OUT/speak.json; files count by their content, not by their path."""
    used = options.augmentation
    settings = asdict(replace(options, augmentation=None))
    return settings | {"augmentation": {"name": used.name, "sha256": used.sha256} if used else None}


def check_scripts(scripts: Sequence[Script]) -> None:
    """Raises UserError if an id is used twice or cannot be the name of a folder."""
    for name, count in Counter(script.id for script in scripts).items():
        if count > 1:
            raise UserError(f"script id {name!r} is there {count} times: ids must be unique", code="bad-record")
        if not ID_PATTERN.fullmatch(name):
            raise UserError(
                f"script id {name!r} cannot name a folder: use letters, digits, '_' and '-'", code="bad-record"
            )


def speak_scripts(
    scripts: Sequence[Script],
    out: Path,
    *,
    engine: EngineChoice | str,
    seed: int,
    executor: Executor,
    options: StitchOptions,
) -> dict[str, Any]:
    """Speaks all scripts into `out` and returns the report, which it also writes to OUT/report.json.

    `engine` may be the name of one that needs no more settings, or auto.
    Raises: UserError for bad ids, a foreign folder, a missing engine, or if there is no dialogue at all in the end.
    """
    check_scripts(scripts)
    if isinstance(engine, str):
        engine = EngineChoice(name=choose_engine(engine))
    [identity] = executor.run(_identity, [engine])  # A worker opens the engine, because only workers may have the GPU.
    claim_folder(out, "speak.json", {"engine": identity, "seed": seed, "options": settings_of(options)}, "speak")
    before = {script.id: spoken_seconds(script, out / script.id) for script in scripts}
    todo = [script for script in scripts if before[script.id] is None]
    started = time.perf_counter()
    work = partial(_work, engine=engine, seed=seed, options=options, out=out)
    results = executor.run(work, todo, lost=lambda script, reason: SpokenScript(id=script.id, reason=reason))
    done = list(tqdm(results, total=len(todo), unit="dialogue", desc="speak"))
    elapsed = time.perf_counter() - started
    rejected = sorted((o for o in done if o.reason), key=lambda o: o.id)
    lengths = [seconds for seconds in before.values() if seconds] + [o.seconds for o in done if not o.reason]
    report = {
        "done": len(lengths),
        "skipped": len(scripts) - len(todo),
        "rejected": [{"id": o.id, "reason": o.reason} for o in rejected],
        "reasons": dict(Counter(o.reason.split(":")[0] for o in rejected)),
        "audio_seconds": round(math.fsum(lengths), 2),
        "wall_seconds": round(elapsed, 2),
        "engine": engine.name,
    }
    write_report(out, report)
    if not lengths:
        raise UserError(
            f"no dialogue was spoken, see {out / 'report.json'}; the first reason is {rejected[0].reason!r}",
            code="no-data",
        )
    return report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `ppx-data speak`."""
    parser.add_argument("--scripts", type=Path, required=True, help="scripts file, from `ppx-data synth`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the dialogues; resumed if it is ours")
    parser.add_argument("--engine", choices=("auto", *NAMES), default="auto", help="who speaks; auto: kokoro or espeak")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other voices and timing")
    parser.add_argument("--limit", type=int, help="speak only the first N scripts")
    parser.add_argument("--voice-seconds", type=float, default=4.0, help="about how long a voice prompt is (3-10)")
    parser.add_argument(
        "--voice-prompt-from",
        dest="voice_prompt",
        choices=PROMPTS,
        default="spoken",
        help="the voice prompt is another utterance (spoken), or the clip that is imitated (clip)",
    )
    parser.add_argument("--timing", default="default", help="file from `ppx-data timing`, or default")
    parser.add_argument("--augment", help="YAML file, or a preset: what happens to the user's voice (default: nothing)")
    parser.add_argument("--voices", type=Path, help="manifest of clips for chatterbox, from `ppx-data voices`")
    parser.add_argument("--url", default="", help="server of chatterbox or dia, see scripts/tts_server.py")
    parser.add_argument(
        "--engine-model",
        dest="model",
        metavar="DIR",
        help="weights of chatterbox or dia in this process (default: those that they download)",
    )
    parser.add_argument("--device", default="cpu", help="where chatterbox or dia runs in this process, e.g. cuda")
    parser.add_argument("--engine-option", nargs="+", default=[], metavar="KEY=NUMBER", help="e.g. exaggeration=0.7")
    parser.add_argument("--store", type=Path, help="where what chatterbox or dia said is kept (default: OUT/.speech)")
    limits.add_arguments(parser)
    add_executor_arguments(parser)
    add_old_flag(parser, "--voice-prompt", "--voice-prompt-from")
    add_old_flag(parser, "--model", "--engine-model")


def run(args: argparse.Namespace) -> None:
    """`ppx-data speak`."""
    scripts = read_scripts(args.scripts)
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit {args.limit}: must be 1 or more", code="bad-value")
    options = StitchOptions(
        voice_seconds=args.voice_seconds,
        voice_prompt=args.voice_prompt,
        timing=load_timing(args.timing),
        augmentation=load_augmentation(args.augment) if args.augment else None,
        limits=limits.limits_of(args),
    )
    name = choose_engine(args.engine)
    if args.voice_prompt == "clip" and "--voices" not in USED[name]:
        raise UserError(f"--engine {name} imitates no clip: leave --voice-prompt-from out", code="bad-combination")
    if name == "dia" and options.augmentation and options.augmentation.needs_babble:
        raise UserError("dia has no voices for babble: take the kind babble out of --augment", code="bad-combination")
    engine = EngineChoice(
        name=name,
        url=args.url,
        model=args.model,
        device=args.device,
        voices=args.voices,
        store=args.store or (args.out / ".speech" if "--store" in USED[name] else None),
        options=parse_options(args.engine_option),
    )
    report = speak_scripts(
        scripts[: args.limit], args.out, engine=engine, seed=args.seed, executor=executor_of(args), options=options
    )
    print(
        f"{report['done']} dialogues spoken, {report['audio_seconds'] / 60:.1f} min; {report['skipped']} were there; "
        f"{report['wall_seconds']:.0f} s, {len(report['rejected'])} rejected: {args.out / 'report.json'}"
    )


def parse_options(given: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """KEY=NUMBER words. Raises UserError for another shape."""
    options = {}
    for word in given:
        key, _, value = word.partition("=")
        try:
            options[key] = float(value)
        except ValueError:
            raise UserError(
                f"--engine-option {word!r}: give KEY=NUMBER, such as exaggeration=0.7", code="bad-value"
            ) from None
    return tuple(sorted(options.items()))
