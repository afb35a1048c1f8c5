"""Exported folders in Kyutai's own loader, found on a hub by their name: the logits and codes must be ours."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from model.duplex import DuplexLM
from model.weights.checkpoint import save_native
from ppx_train.cli import export
from ppx_train.config.load import load
from ppx_train.inference.loading import load_release
from tests.hub_server import Hub, hub_server
from tests.ppx_train.fixtures import make_shards, run_arguments, write_checkpoint

BASE = "kyutai/moshiko-pytorch-bf16"
LORA = (f"model.init={BASE}", "model.lora.rank=3", "model.lora.patterns=['self_attn', 'linears']")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server(tmp_path / "hub") as server:
        server.connect(monkeypatch, tmp_path / "home")
        yield server


@pytest.fixture
def checkpoint(hub: Hub, tmp_path: Path) -> Path:
    """Adapters on a base of 8 depth steps from the hub."""
    make_shards(tmp_path, dialogues=6)
    torch.manual_seed(11)
    save_native(tmp_path / "start", DuplexLM(load(run_arguments(tmp_path, tmp_path)).model.lm), dep_q=8)
    hub.add(BASE, tmp_path / "start")
    return write_checkpoint(tmp_path, tmp_path / "run", 2, *LORA)[0]


@pytest.mark.parametrize("layout", ["kyutai", "lora"])
@pytest.mark.parametrize("fused", [True, False])
def test_kyutais_loader_gives_our_logits_and_codes_from_the_name_alone(
    kyutai: Any, hub: Hub, checkpoint: Path, tmp_path: Path, layout: str, fused: bool
) -> None:
    words = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / layout), "--dtype", "fp32", "--layout", layout]
    export.command([*words, "--push", f"org/{layout}"])
    ours = load_release(f"org/{layout}")

    info = kyutai.loaders.CheckpointInfo.from_hf_repo(f"org/{layout}")
    theirs = info.get_moshi(dtype=torch.float32, fuse_lora=fused)
    codes_BKT = torch.randint(64, (2, 17, 10), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, logits = theirs(codes_BKT), ours.lm.logits(codes_BKT)
    assert torch.equal(expected.mask, logits.audio_mask_BQT) and expected.mask.any()
    for found, wanted, mask in (
        (logits.audio_BQTV, expected.logits, expected.mask),
        (logits.text_BTV[:, None], expected.text_logits, expected.text_mask),
    ):
        torch.testing.assert_close(found[mask], wanted[mask], rtol=1e-4, atol=1e-4)

    audio_B1S = 0.3 * torch.randn(1, 1, 4 * 1920, generator=torch.Generator().manual_seed(2))
    assert torch.equal(info.get_mimi().encode(audio_B1S), ours.codec.encode(audio_B1S))
    text = "please could you tell me"
    assert info.get_text_tokenizer().encode(text) == list(ours.tokenizer.encode(text))


def test_kyutais_loader_refuses_an_adapter_of_a_base_with_sixteen_steps(kyutai: Any, hub: Hub, tmp_path: Path) -> None:
    make_shards(tmp_path, dialogues=6)
    torch.manual_seed(11)
    save_native(tmp_path / "start", DuplexLM(load(run_arguments(tmp_path, tmp_path)).model.lm))
    hub.add(BASE, tmp_path / "start")
    folder, _ = write_checkpoint(tmp_path, tmp_path / "run", 2, *LORA)
    words = ["--checkpoint", str(folder), "--out", str(tmp_path / "out"), "--layout", "lora", "--push", "org/lora"]
    export.command(words)
    assert "dim" not in json.loads((tmp_path / "out" / "config.json").read_text())
    with pytest.raises((TypeError, RuntimeError, OSError)):
        kyutai.loaders.CheckpointInfo.from_hf_repo("org/lora").get_moshi(dtype=torch.float32)
