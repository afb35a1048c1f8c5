"""Where the figures of a run go: CSV always, TensorBoard and Weights & Biases by setting."""

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from model.errors import UserError
from model.extras import require
from ppx_train.config.load import Job
from ppx_train.training.ranks import is_launcher


def check_login(run: Job) -> None:
    """Raises UserError if figures are to go to Weights & Biases and this machine has no key for it.

    It is looked for where `wandb` looks: its variables and settings, and the netrc file that `wandb login` writes.
    """
    if run.logging.wandb != "online" or not is_launcher():
        return
    read_netrc = require("requests.utils", extra="wandb").get_netrc_auth
    settings = require("wandb", extra="wandb").setup().settings
    own = settings.api_key or getattr(
        settings, "identity_token_file", None
    )  # Versions before 0.19.2 have no such file.
    if not own and read_netrc(settings.base_url) is None:
        raise UserError(
            "logging.wandb=online but there is no key for Weights & Biases: run `wandb login`, set WANDB_API_KEY, or "
            "take logging.wandb=offline",
            code="no-access",
        )


def make_loggers(run: Job) -> list[Logger]:
    """Returns the loggers: CSV always (each start writes a new version_N), TensorBoard and W&B by setting."""
    loggers: list[Logger] = [CSVLogger(run.run_dir, name="logs", flush_logs_every_n_steps=1)]
    if run.logging.tensorboard:
        loggers.append(TensorBoardLogger(run.run_dir, name="tensorboard", version=""))
    if run.logging.wandb != "off":
        require("wandb", extra="wandb")
        from lightning.pytorch.loggers import WandbLogger

        offline = run.logging.wandb == "offline"
        loggers.append(WandbLogger(project=run.logging.project, name=run.recipe, save_dir=run.run_dir, offline=offline))
    return loggers
