"""What is read from the codes in training, to teach the encoder directly: mel spectra, sounds, a recogniser's features.

Through the waveform alone, the codes had learnt little more than loudness after 2,700 steps.
"""

# Shapes: B batch, S samples, D width, T frames (of 80 ms), U upsampled frames (steps of 40 ms)

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppx_train.training.codec.crops import SOUNDS_A_FRAME, UNKNOWN, CropBatch
from ppx_train.training.codec.spectra import FLOOR, envelope, mel_bank

READ_LENGTH, READ_BANDS, READ_HOP, READ_POOL = 512, 48, 120, 2
"""STFT length, mel bands, hop and averaged frames of the mel spectrum that is read: a target every 10 ms."""
TARGETS_A_STEP = 4


class Teachers(nn.Module):
    """Linear read-outs, which are not part of the codec."""

    def __init__(self, width: int, sounds: int, features: int) -> None:
        super().__init__()
        self.mel = nn.Linear(width, TARGETS_A_STEP * READ_BANDS)
        self.register_buffer("bank", mel_bank(READ_LENGTH, READ_BANDS), persistent=False)
        self.sounds = nn.Linear(width, SOUNDS_A_FRAME * sounds) if sounds else None
        self.code_features = nn.Linear(width, features) if features else None
        self.step_features = nn.Linear(width, features) if features else None

    def read_mel(self, steps_BDU: Tensor, wanted_BS: Tensor) -> Tensor:
        """Mean absolute log difference of the mel spectrum read from the decoder's transformer."""
        made = self.mel(steps_BDU.transpose(1, 2)).unflatten(2, (TARGETS_A_STEP, READ_BANDS)).flatten(1, 2)
        wanted = envelope(wanted_BS, READ_LENGTH, READ_HOP, self.get_buffer("bank"), READ_POOL).transpose(1, 2)
        return (made - (wanted[:, : made.shape[1]] + FLOOR).log()).abs().mean()

    def read_sounds(self, first_BDT: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of the labels that are known, read from the first codebook's entries; 0 without any."""
        assert self.sounds is not None
        logits = self.sounds(first_BDT.transpose(1, 2)).unflatten(2, (SOUNDS_A_FRAME, -1)).flatten(1, 2)
        known = (labels != UNKNOWN).sum().clamp(min=1)
        total = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=UNKNOWN, reduction="sum")
        return total / known

    def read_features(self, first_BDT: Tensor, steps_BDU: Tensor, batch: CropBatch) -> Tensor:
        """Share of the features' variance that is missed, by the first codebook and by the decoder's transformer."""
        assert self.code_features is not None and self.step_features is not None and batch.features_BTD is not None
        frames_BTD = steps_BDU.unflatten(2, (-1, 2)).mean(3).transpose(1, 2)
        read = (self.code_features(first_BDT.transpose(1, 2)), self.step_features(frames_BTD))
        missed = torch.stack([(made - batch.features_BTD).square().sum(-1) for made in read]).mean(0)
        known_BT = batch.is_known_BT
        return (missed * known_BT).sum() / (batch.features_BTD.square().sum(-1) * known_BT).sum().clamp(min=1e-6)
