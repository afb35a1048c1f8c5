"""The Dia adapter on the real architecture, with a tiny random model: it babbles, but through every real call."""

from pathlib import Path

import numpy as np
import pytest

transformers = pytest.importorskip("transformers", minversion="5.20")
pytest.importorskip("pocketsphinx")

from data_pipelines.speech.engines import EngineChoice, open_engine  # noqa: E402
from data_pipelines.speech.tts.server import Dia, Refused, float_wav  # noqa: E402
from tests.refusals import refused  # noqa: E402

RATE, HOP = 44100, 512
NUM_POSITIONS = 250
TEXT = "[S1] Hello there. [S2] Hi."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as save_pretrained leaves it: one layer, nine codebooks."""
    import torch

    out = tmp_path_factory.mktemp("dia")
    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    small = heads | {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32}
    cross = {f"cross_{name}": value for name, value in (heads | {"hidden_size": 32}).items()}
    config = transformers.DiaConfig(
        encoder_config=transformers.DiaEncoderConfig(**small),
        decoder_config=transformers.DiaDecoderConfig(**small, **cross, max_position_embeddings=NUM_POSITIONS),
    )
    transformers.DiaForConditionalGeneration(config).save_pretrained(out)
    codec = {"encoder_hidden_size": 4, "decoder_hidden_size": 32, "hidden_size": 64, "codebook_dim": 4}
    dac = transformers.DacModel(transformers.DacConfig(**codec, n_codebooks=9, codebook_size=1024, sampling_rate=RATE))
    dac.save_pretrained(out / "dac")
    dac = transformers.DacModel.from_pretrained(out / "dac")  # The processor names the folder it came from.
    features = transformers.DiaFeatureExtractor(sampling_rate=RATE, hop_length=HOP)
    transformers.DiaProcessor(features, transformers.DiaTokenizer(), dac).save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def engine(folder: Path) -> Dia:
    return Dia(str(folder))


def test_the_real_model_returns_sound_that_its_seed_decides(engine: Dia) -> None:
    one, again, other = (engine.say(TEXT, b"", seed, {}) for seed in (0, 0, 1))
    assert one[1] == RATE and one[0].dtype == np.float32 and one[0].ndim == 1
    np.testing.assert_array_equal(one[0], again[0])
    assert len(one[0]) != len(other[0]) or not np.array_equal(one[0], other[0])
    assert len(one[0]) <= NUM_POSITIONS * HOP and np.isfinite(one[0]).all()


def test_the_reference_is_not_part_of_the_result_and_takes_its_room(engine: Dia) -> None:
    """A reference of 2 s holds 173 of the positions, 15 go to the delays at either end."""
    reference = (0.1 * np.sin(np.arange(2 * RATE) / 9)).astype(np.float32)
    audio, _ = engine.say(TEXT, float_wav(reference, RATE), 0, {"top_k": 20, "temperature": 1.0})
    assert 0 < len(audio) <= (NUM_POSITIONS - 173 - 15) * HOP
    with pytest.raises(Refused, match="no room after this reference"):
        engine.say(TEXT, float_wav(np.tile(reference, 3), RATE), 0, {})
    with pytest.raises(Refused, match="mono 32-bit float WAV at 44100 Hz"):
        engine.say(TEXT, float_wav(reference, 16000), 0, {})
    with pytest.raises(Refused, match="option 'speed': choose one of guidance_scale"):
        engine.say(TEXT, b"", 0, {"speed": 2})


def test_babble_is_no_speech_and_is_refused_with_a_reason(folder: Path, tmp_path: Path) -> None:
    engine = open_engine(EngineChoice(name="dia", model=str(folder), store=tmp_path))
    identity = engine.identity()
    assert identity["model_sha256"] and identity["version"].startswith("transformers 5")
    with refused("bad-answer"):
        engine.converse([("agent", "Hello there, how are you today?"), ("user", "I am fine.")], seed=0)
