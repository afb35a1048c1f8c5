"""`ppx-data fisher`: Fisher English calls become dialogue folders, both sides as agent, with word times.

OUT/fisher.json states the settings. OUT/.drafts/CALL.json says that a call is done and what it gave. meta.json of each
dialogue is written at the end, when the split of all calls is known (settle.py). OUT/report.json counts calls and
reasons.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import isfinite
from pathlib import Path

from tqdm import tqdm

from data_pipelines.execution.executor import Executor, executor_of
from data_pipelines.execution.executor import add_arguments as add_executor_arguments
from data_pipelines.files import claim_folder
from data_pipelines.listening.align import shared_aligner
from data_pipelines.recordings.budget import dialogue_seconds, token_counter
from data_pipelines.recordings.clips import MAX_CLIP_SECONDS, MIN_CLIP_SECONDS
from data_pipelines.recordings.cut import has_audio
from data_pipelines.recordings.drafts import ImportReport, Note, read_drafts, write_draft
from data_pipelines.recordings.fill import Listener
from data_pipelines.recordings.fisher.bandwidth import check_command
from data_pipelines.recordings.fisher.call import import_call
from data_pipelines.recordings.fisher.call_tables import Tables, read_tables
from data_pipelines.recordings.fisher.found import LDC_LICENCE, calls_of, describe, licence_of
from data_pipelines.recordings.fisher.job import CallDraft, CallFiles, Filters, FisherSettings
from data_pipelines.recordings.fisher.layout import MARKER_FILE, find_corpus
from data_pipelines.recordings.fisher.settle import settle
from data_pipelines.recordings.options import MASK_HELP, check_limit
from data_pipelines.recordings.windows import MIN_WINDOW_SECONDS, WindowLimits
from data_pipelines.roles.topics import BARE
from data_pipelines.sound.audio import RESAMPLERS
from model.errors import UserError

DRAFTS = ".drafts"
LONGEST_TIMEOUT = 86_400.0
SHORTEST_VOICE = MIN_CLIP_SECONDS + 0.2
"""Clips end after words, so there must be room for the end of one between the least and the longest clip."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `ppx-data fisher`."""
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, help="folders of the discs and transcripts")
    parser.add_argument("--out", type=Path, required=True, help="folder for the dialogues; resumed if it is ours")
    parser.add_argument("--seed", type=int, default=0, help="draws prompts and voice clips")
    parser.add_argument("--limit", type=int, help="import only the first N calls")
    parser.add_argument(
        "--licence", help=f"of the audio (default: that in a stand-in's {MARKER_FILE}, else {LDC_LICENCE!r})"
    )
    parser.add_argument("--mask", action="store_true", help=MASK_HELP)
    gaps = parser.add_argument_group(
        "gaps", "lines that are only `(( ))`, speech that the transcriber did not understand"
    )
    gaps.add_argument("--fill-gaps", action="store_true", help="have a recogniser fill them with what fits the sound")
    gaps.add_argument("--asr", help="with --fill-gaps: tiny.en (default), a folder, large-v3, parakeet:ORG/NAME")
    gaps.add_argument("--device", help="with --fill-gaps: where it runs, cpu (default), cuda, cuda:1")
    size = parser.add_argument_group("size", "a training row of 2048 frames also holds the voice clip and the prompt")
    size.add_argument(
        "--max-seconds", type=float, help="longest dialogue (default: what a row leaves); a call gives several"
    )
    size.add_argument("--voice-seconds", type=float, default=5.0, help="longest voice clip (3.2-10)")
    size.add_argument("--prompt-tokens", type=int, default=128, help="frames kept free for the role prompt")
    size.add_argument(
        "--tokenizer", type=Path, help="SentencePiece model to count prompt tokens by (default: estimate)"
    )
    choice = parser.add_argument_group(
        "filters", "of calls (grades) and of the sides that may be the agent; off by default"
    )
    choice.add_argument("--min-signal-grade", type=float, help="least SIG_GRADE of a call")
    choice.add_argument("--min-conversation-grade", type=float, help="least CNV_GRADE of a call")
    choice.add_argument("--native", action="store_true", help="agents are native speakers of American English only")
    choice.add_argument("--sex", choices=("f", "m"), default="", help="agents are of this sex only")
    choice.add_argument("--min-speech", type=float, default=4.0, help="seconds the agent says in a window at least")
    choice.add_argument("--max-uncertain", type=float, default=0.1, help="share of the agent's speech without words")
    sound = parser.add_argument_group("sound")
    sound.add_argument("--resampler", choices=sorted(RESAMPLERS), default="soxr-hq", help="8 kHz to 24 kHz")
    sound.add_argument(
        "--bandwidth-extension",
        default="",
        metavar="COMMAND",
        help="run for each call instead, e.g. 'extend {input} {output}': stereo WAV to stereo WAV of 24 kHz",
    )
    sound.add_argument("--bandwidth-timeout", type=float, default=600.0, help="seconds it may take for one call")
    add_executor_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Runs `ppx-data fisher`. Raises UserError as `import_corpus`."""
    most = dialogue_seconds(args.voice_seconds, args.prompt_tokens)
    max_seconds = most if args.max_seconds is None else args.max_seconds
    settings = FisherSettings(
        seed=args.seed,
        limits=WindowLimits(max_seconds=max_seconds, min_speech=args.min_speech, max_uncertain=args.max_uncertain),
        voice_seconds=args.voice_seconds,
        licence=(args.licence or "").strip(),
        filters=Filters(
            min_signal=args.min_signal_grade,
            min_conversation=args.min_conversation_grade,
            native=args.native,
            sex=args.sex,
        ),
        prompt_tokens=args.prompt_tokens,
        tokenizer=str(args.tokenizer or ""),
        resampler=args.resampler,
        bandwidth_extension=args.bandwidth_extension,
        bandwidth_timeout=args.bandwidth_timeout,
        mask=args.mask,
        listener=_listener_of(args),
    )
    report = import_corpus(args.corpus, args.out, settings, executor=executor_of(args), limit=args.limit)
    print(report.summary(args.out))


def _listener_of(args: argparse.Namespace) -> Listener | None:
    """Returns who fills gaps, if they are to be filled. Raises UserError for an option that would have no effect."""
    if args.fill_gaps:
        if args.asr == "":
            raise UserError("--asr '': name a recogniser, e.g. tiny.en, or leave it out", code="bad-value")
        return Listener(asr=args.asr or "tiny.en", device=args.device or "cpu")
    for option in ("asr", "device"):
        if getattr(args, option) is not None:
            raise UserError(f"--{option} has an effect with --fill-gaps only: give that, too", code="bad-combination")
    return None


def import_corpus(
    roots: Sequence[Path], out: Path, settings: FisherSettings, *, executor: Executor, limit: int | None = None
) -> ImportReport:
    """Imports all calls below `roots` into `out` and returns the report, which is also written to OUT/report.json.

    Without a licence in the settings the corpus' own is taken. Calls that cannot be used are rejected with a reason
    and the others go on. The report counts the calls of the folder, those of earlier runs included.
    Raises: UserError for settings out of range, a wrong folder, a foreign `out`, a missing package, or if no call
    at all gives a dialogue.
    """
    _check_settings(settings, limit)
    corpus = find_corpus(roots)
    tables = read_tables(corpus.tables)
    _check_filters(settings.filters, tables)
    settings = replace(settings, licence=settings.licence or licence_of(corpus))
    shared_aligner()  # A missing package ends the run here, rather than each call.
    if settings.listener:
        settings.listener.recogniser()  # So does a missing recogniser.
    claim_folder(out, "fisher.json", settings.record(), "fisher")
    every_call = calls_of(corpus, tables)
    calls = every_call[:limit]
    messages = [*describe(corpus, tables, calls), f"licence of the audio: {settings.licence}"]
    for message in messages:
        print(message)

    def do(todo: Sequence[CallFiles]) -> dict[str, CallDraft]:
        done = executor.run(partial(import_call, settings=settings, out=out), todo, lost=_lost)
        for draft in tqdm(done, total=len(todo), unit="call", desc="fisher", disable=not todo):
            write_draft(out / DRAFTS / f"{draft.call}.json", draft)
        return read_drafts(out / DRAFTS, CallDraft)

    before = {call for call, draft in read_drafts(out / DRAFTS, CallDraft).items() if not draft.rejected}
    todo = [files for files in calls if files.call not in before]
    drafts = do(todo)
    settled = settle(drafts.values())
    missing = {call for call, dialogue in settled.kept if not has_audio(out / dialogue.id, dialogue.agent_sides)}
    if missing:  # Somebody deleted the audio, or an earlier run over fewer calls had no use for it.
        drafts = do([files for files in every_call if files.call in missing])
        settled = settle(drafts.values())
    settled.finish(out)
    good = {call for call, draft in drafts.items() if not draft.rejected}
    report = ImportReport(
        recordings=len(good),
        dialogues=[dialogue for _, dialogue in settled.kept],
        rejected=[Note(id=f"fe_03_{call}", reason=draft.rejected) for call, draft in drafts.items() if draft.rejected],
        notes=settled.notes,
        skipped=len(good - {files.call for files in todo} - missing),
    )
    split = [settled.plan.note] if settled.plan.note else []
    report.write(out, done=len(good), messages=[*messages, *split])
    for message in split:
        print(message)
    return report


def _lost(files: CallFiles, reason: str) -> CallDraft:
    return CallDraft(call=files.call, rejected=reason)


def _check_settings(settings: FisherSettings, limit: int | None) -> None:
    """Raises UserError naming the first option that is out of range."""
    check_limit(limit)
    limits, voice, filters = settings.limits, settings.voice_seconds, settings.filters
    most = dialogue_seconds(voice, settings.prompt_tokens)
    _require(
        SHORTEST_VOICE <= voice <= MAX_CLIP_SECONDS,
        f"--voice-seconds {voice:g}: must be from {SHORTEST_VOICE:g} to {MAX_CLIP_SECONDS:g}",
    )
    _require(0 <= settings.prompt_tokens <= 1000, f"--prompt-tokens {settings.prompt_tokens}: must be from 0 to 1000")
    _require(
        MIN_WINDOW_SECONDS <= limits.max_seconds <= most,
        f"--max-seconds {limits.max_seconds:g}: must be from {MIN_WINDOW_SECONDS:.0f} to {most:g}, "
        f"which a row leaves beside {voice:g} s of voice and {settings.prompt_tokens} prompt tokens",
    )
    _require(0 <= limits.max_uncertain <= 1, f"--max-uncertain {limits.max_uncertain:g}: must be a share from 0 to 1")
    _require(
        0 < limits.min_speech <= limits.max_seconds,
        f"--min-speech {limits.min_speech:g}: must be above 0 and at most --max-seconds",
    )
    _require(
        0 < settings.bandwidth_timeout <= LONGEST_TIMEOUT,
        f"--bandwidth-timeout {settings.bandwidth_timeout:g}: must be above 0, at most a day (86400)",
    )
    for option, grade in (("signal", filters.min_signal), ("conversation", filters.min_conversation)):
        _require(grade is None or isfinite(grade), f"--min-{option}-grade {grade}: give a number, e.g. 3")
    if settings.bandwidth_extension:
        check_command(settings.bandwidth_extension)
    token_counter(settings.tokenizer)(BARE)  # A wrong tokenizer ends the run here, rather than each call.


def _require(is_good: bool, message: str) -> None:
    if not is_good:
        raise UserError(message, code="bad-value")


def _check_filters(filters: Filters, tables: Tables) -> None:
    """Raises UserError for a filter that nothing can pass because the table it asks is not there."""
    asked = {
        "--min-signal-grade": filters.min_signal is not None,
        "--min-conversation-grade": filters.min_conversation is not None,
        "--native": filters.native,
        "--sex": bool(filters.sex) and "filetable" in tables.missing,
    }
    for option, is_set in asked.items():
        if is_set and "calldata" in tables.missing:
            raise UserError(
                f"{option} needs a table fe_03_pN_calldata.tbl to choose by: give its folder to --corpus, too",
                code="not-found",
            )
