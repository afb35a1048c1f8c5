"""The LightningModule that trains a codec: one training_step is one optimiser step over one batch of crops."""

# Shapes: B batch, S samples, D width, T frames, U upsampled frames (steps of 40 ms)

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.errors import UserError
from model.mimi.train_optimizer import Muon, split_parameters
from model.mimi.train_quantizer import init_codebooks, pass_unquantized, quantize_with_gradient
from ppx_train.config.codec import CodecRun
from ppx_train.training.agreement import Agreement
from ppx_train.training.codec.build import make_codec
from ppx_train.training.codec.crops import CropBatch, Crops
from ppx_train.training.codec.recogniser import FEATURES
from ppx_train.training.codec.spectra import Adversary, SpectralLoss
from ppx_train.training.codec.teachers import Teachers
from ppx_train.training.guard import MAX_SKIPPED
from ppx_train.training.optim import lr_scale

DROPOUT_SHARE = 0.25
"""Share of the steps that use fewer acoustic codebooks."""
KMEANS_BATCHES = 24
ADVERSARY_LR = 3e-4
SYMBOLS = "symbols"
"""The key of the sounds in a saved state, in the order of their classes."""


class CodecModule(L.LightningModule):
    """Trains a Mimi. `terms` holds the loss terms of the last step."""

    def __init__(self, run: CodecRun, crops: Crops, symbols: Sequence[str]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.run, self.crops, self.symbols = run, crops, list(symbols)
        self.cutter = ThreadPoolExecutor(1)
        self.ahead: tuple[int, Future[CropBatch]] | None = None
        self.base_sha256: str | None = None
        self.agreement = Agreement()
        self.skipped_steps = self.skipped_in_a_row = 0
        self.terms: dict[str, float] = {}
        self.codec = make_codec(run)
        width = self.codec.config.seanet.dimension
        self.teachers = Teachers(width, len(symbols) if run.loss.phones else 0, FEATURES if run.loss.recogniser else 0)
        self.spectral = SpectralLoss()
        self.adversary = Adversary() if run.loss.adversary else None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the sounds, since a run that goes on with more audio must keep their order."""
        checkpoint[SYMBOLS] = self.symbols

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """AdamW, Muon over the matrices of the codec, and AdamW over the judges."""
        settings = self.run.optim
        decoder = list(self.codec.decoder.parameters())
        late = {id(parameter) for parameter in decoder}
        matrices, others = split_parameters(p for p in self.codec.parameters() if id(p) not in late)
        late_matrices, late_others = split_parameters(decoder)
        others += list(self.teachers.parameters())
        begins = self.run.loss.decode_from
        adam = torch.optim.AdamW(
            [
                {"params": others, "begins": 0},
                {"params": late_others, "begins": begins},
            ],
            lr=settings.lr, betas=(0.8, 0.99), weight_decay=settings.weight_decay,
        )  # fmt: skip
        muon = Muon(
            [{"params": matrices, "begins": 0}, {"params": late_matrices, "begins": begins}],
            settings.lr,
        )
        found: list[torch.optim.Optimizer] = [adam, muon]
        if self.adversary is not None:
            found.append(torch.optim.AdamW(self.adversary.parameters(), lr=ADVERSARY_LR, betas=(0.5, 0.9)))
        return found

    def training_step(self, *_: object) -> None:
        """Takes one optimiser step; its crops and random numbers depend on the seed and its number alone."""
        step = self.global_step
        batch = self._crops_of(step).to(self.device)
        self.agreement.agree(torch.tensor(self.agreement.ask()))
        torch.manual_seed((self.run.seed << 24) + step)
        if step == self.run.loss.quantize_from and step:
            self.fill_codebooks()
        rng = np.random.default_rng([self.run.seed, step, 1])
        acoustic = self.codec.num_codebooks - 1
        if rng.random() < DROPOUT_SHARE:
            acoustic = int(rng.integers(1, acoustic))
        terms, made_BS = self.losses(batch, acoustic)
        self.manual_backward(terms["loss"])
        self._update(terms, made_BS, batch.wav_B1S[:, 0])
        self.terms = {name: float(term.detach()) for name, term in terms.items()}

    def _crops_of(self, step: int) -> CropBatch:
        """The crops of a step; those of the next one are cut meanwhile."""
        number, future = self.ahead or (step, self.cutter.submit(self.crops, step))
        if number != step:
            future = self.cutter.submit(self.crops, step)
        batch = future.result()
        self.ahead = (step + 1, self.cutter.submit(self.crops, step + 1))
        return batch

    def losses(self, batch: CropBatch, acoustic: int) -> tuple[dict[str, Tensor], Tensor | None]:
        """The terms of the objective, `loss` being their weighted sum, and the waveform [B, S] if one is decoded.

        acoustic: how many acoustic codebooks are used.
        """
        codec, weights, step = self.codec, self.run.loss, self.global_step
        wav_B1S = batch.wav_B1S
        half = self.run.trainer.precision == "bf16-mixed" and step < weights.fp32_from * self.run.steps
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            latent_BDT = codec.latent(wav_B1S)
        latent_BDT = latent_BDT.float()  # Codebooks need the full precision.
        if step < weights.quantize_from:
            first_BDT, rest_BDT = pass_unquantized(codec.quantizer, latent_BDT)
            commit = latent_BDT.new_zeros(())
        else:
            quantized = quantize_with_gradient(codec.quantizer, latent_BDT, acoustic, follow=self.training)
            first_BDT, rest_BDT, commit = quantized
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            steps_BDU = codec.decoder_transformer(codec.upsample.convtr(first_BDT + rest_BDT))
        terms = {"readout": self.teachers.read_mel(steps_BDU.float(), wav_B1S[:, 0]), "commit": commit}
        if weights.phones:
            terms["phones"] = self.teachers.read_sounds(first_BDT, batch.labels)
        if weights.recogniser:
            terms["recogniser"] = self.teachers.read_features(first_BDT, steps_BDU.float(), batch)
        made_BS = None
        if step >= weights.decode_from:
            # The decoder computes in fp32: the upper half of a spectrum may lie 60 dB below the lower one.
            made_BS = codec.decoder(steps_BDU.float())[:, 0]
            terms["mel"], terms["linear"] = self.spectral(made_BS, wav_B1S[:, 0], step if self.training else None)
            # No mel band holds 0 Hz, so that a constant offset would go unpunished.
            terms["offset"] = F.avg_pool1d(made_BS - wav_B1S[:, 0], 480, 240).square().mean()
        loss = torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()
        if self.adversary is not None and made_BS is not None and step >= weights.adversary_from:
            terms["fooled"], terms["inside"] = self.adversary.codec_loss(made_BS, wav_B1S[:, 0])
            loss = loss + weights.adversary * (terms["fooled"] + 2 * terms["inside"])
        return terms | {"loss": loss}, made_BS

    def _update(self, terms: dict[str, Tensor], made_BS: Tensor | None, wanted_BS: Tensor) -> None:
        """Clips, sets the learning rate by the step number, and steps; a gradient that is not finite is skipped."""
        adam, *others = self.optimizers()  # type: ignore[misc, attr-defined]
        trained = [*self.codec.parameters(), *self.teachers.parameters()]
        terms["gradient_norm"] = nn.utils.clip_grad_norm_(trained, self.run.optim.clip_norm)
        is_finite = bool(terms["gradient_norm"].isfinite())
        if self.adversary is not None and "fooled" in terms and made_BS is not None:
            judge = others.pop()
            judge.zero_grad()  # The codec's loss has left gradients there.
            terms["judge"] = self.adversary.judge_loss(made_BS, wanted_BS)
            is_finite = is_finite and bool(terms["judge"].isfinite())
            if is_finite:
                self.manual_backward(terms["judge"])
                judge.optimizer.step()
        elif self.adversary is not None:
            others.pop()
        if is_finite:
            for optimizer in others:
                self._set_rates(optimizer)
                optimizer.optimizer.step()  # Lightning counts every step of its own wrapper as one of the run.
            self.skipped_in_a_row = 0
        else:
            self.skipped_steps += 1
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row >= MAX_SKIPPED:
                raise UserError(
                    f"{MAX_SKIPPED} steps in a row had a loss or gradient that is not finite: lower optim.lr or "
                    "loss.adversary, or check the audio",
                    code="bad-value",
                )
            adam.zero_grad()
        self._set_rates(adam)
        adam.step()  # Without gradients it only counts the step.
        for optimizer in (adam, *others):
            optimizer.zero_grad()

    def _set_rates(self, optimizer: Any) -> None:
        """Sets the learning rate of the present step; what joins late has a warm-up of its own."""
        settings, step = self.run.optim, self.global_step
        scale = lr_scale(step, settings, self.run.steps)
        for group in optimizer.param_groups:
            own = min(1.0, (step - group["begins"] + 1) / max(1, settings.warmup_steps)) if group["begins"] else 1.0
            group["lr"] = settings.lr * scale * max(0.0, own)

    @torch.no_grad()
    def fill_codebooks(self) -> None:
        """K-means on the latents of many crops, before the first quantised step."""
        batches = [
            self.codec.latent(self.crops(self.run.steps + n).wav_B1S.to(self.device)) for n in range(KMEANS_BATCHES)
        ]
        init_codebooks(self.codec.quantizer, torch.cat(batches))

    @torch.no_grad()
    def score(self, batches: Sequence[CropBatch]) -> dict[str, float]:
        """Mean terms over held-out batches, which move no codebook."""
        self.eval()
        sums: dict[str, float] = {}
        for batch in batches:
            terms, _ = self.losses(batch.to(self.device), self.codec.num_codebooks - 1)
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + float(term) / len(batches)
        self.train()
        return sums
