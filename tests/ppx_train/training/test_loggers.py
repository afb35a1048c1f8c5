"""Weights & Biases without a key is one line before any work."""

from pathlib import Path

import pytest

from ppx_train.config.load import load
from ppx_train.training.loggers import check_login
from ppx_train.training.run import train
from tests.ppx_train.fixtures import run_arguments
from tests.refusals import refused


@pytest.mark.slow
def test_figures_that_go_online_need_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.test")
    monkeypatch.chdir(tmp_path)
    wandb.teardown()  # Another test may have read the real settings.
    run = load(run_arguments(tmp_path, tmp_path / "run", "logging.wandb=online"))
    try:
        with refused("no-access", "logging.wandb=online", "wandb login", "WANDB_API_KEY"):
            train(run)
        assert not (tmp_path / "run").exists()
        (tmp_path / "netrc").write_text(f"machine other.test login user password {'0' * 40}\n")
        with refused("no-access", "logging.wandb=online"):
            check_login(run)
        (tmp_path / "netrc").write_text(f"machine wandb.test login user password {'0' * 40}\n")
        check_login(run)
        (tmp_path / "netrc").unlink()
        wandb.teardown()
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        check_login(run)
    finally:
        wandb.teardown()


def test_figures_that_stay_here_need_none(tmp_path: Path) -> None:
    for more in ([], ["logging.wandb=offline"]):
        check_login(load(run_arguments(tmp_path, tmp_path / "run", *more)))
