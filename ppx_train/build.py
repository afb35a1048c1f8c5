"""Makes the language model a run trains: from scratch or from weights, with or without adapters."""

from pathlib import Path

import torch

from model.checkpoint import from_pretrained
from model.duplex import DuplexLM
from model.errors import UserError
from ppx_train.config import Run
from model.sources import REPOSITORY


def build_lm(run: Run) -> DuplexLM:
    """The model of `run`, fp32, on the CPU; deterministic in run.seed when it starts from scratch.

    With adapters the frozen base is cast to bf16 when the run computes in bf16. Raises UserError for
    weights that are missing, broken or of another architecture.
    """
    settings = run.model
    if run.model.lm.dep_q != 16:
        raise UserError(f"model.lm.dep_q={settings.lm.dep_q}: training needs 16 depth steps (the user's stream too)")
    if settings.init == "scratch":
        if settings.revision is not None:
            raise UserError("model.revision has no effect with model.init=scratch: leave it out")
        torch.manual_seed(run.seed)
        model = DuplexLM(settings.lm)
    else:
        is_repository = not Path(settings.init).exists() and REPOSITORY.match(settings.init)
        if settings.revision is not None and not is_repository:
            raise UserError(f"model.revision has no effect with the local path model.init={settings.init}")
        model = from_pretrained(settings.init, config=settings.lm, revision=settings.revision)
    model.set_activation_checkpointing(settings.activation_checkpointing)
    if settings.lora.rank:
        from model.lora import inject

        adapters = inject(model, settings.lora.rank, settings.lora.scaling, settings.lora.patterns)
        if run.trainer.precision == "bf16-mixed":
            for parameter in model.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(torch.bfloat16)
        print(f"LoRA: {adapters} adapted layers")
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"model: {sum(p.numel() for p in model.parameters()):,} parameters, {trainable:,} trainable")
    return model
