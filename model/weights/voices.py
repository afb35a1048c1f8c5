"""Mimi codes of PersonaPlex's pickled voices, recovered exactly from sums of embeddings.

A voice `.pt` of the published runtime holds what the model was fed while a clip of P frames was prompted:
`embeddings`, the sums of 17 table rows at positions 0 .. P - 2, and `cache`, the ring of tokens after the last frame
(position p in slot p modulo its length). In these frames the text is PAD and the user's codes are constant. What is
left after taking away their rows is a sum of one row of each of the agent's 8 tables, and the rows are found from their
sum. Frame 0 never reaches the model (start ids stand in its place), so that it is in neither: it gets the codes of
frame 1, and makes no difference to a prompt.
"""

# Shapes: P prompt frames (or positions), K streams (17), Q codebooks (8), V vocabulary (rows of a table), D width
# Shapes: N rows (sums), M some rows (frames of the same unknown streams), W window (slots of the ring)

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.config import ZERO_ID, LMConfig
from model.errors import UserError
from model.layers import embed_or_zero
from model.weights.tensor_files import StoredTensor

SWEEPS, TRIES = 30, 16
ROUNDING = 2**-8
"""Relative rounding error of a sum in bf16, which separates signal from noise when the sums are whitened."""
TINY = 1e-30


@dataclass(frozen=True, kw_only=True)
class PickledVoice:
    """Sums of embeddings [P - 1, D], and the ring of tokens [17, W], of a voice of P frames."""

    path: Path
    embeddings_PD: Tensor
    cache_KW: Tensor


@dataclass(frozen=True, kw_only=True)
class RecoveredVoice:
    """Codes [8, P] of a voice; exact: whether they give the file's sums bit by bit, not only up to rounding."""

    codes_QP: Tensor
    exact: bool


def read_pickle(path: Path) -> PickledVoice:
    """Reads a voice `.pt` as tensors alone; no code in it is run.

    Raises: UserError if there is no such file ("not-found"), it holds code or is cut short ("unreadable"), or it does
    not hold a voice ("bad-weights").
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a .pt voice, or a folder of them", code="not-found")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as why:  # The message of torch is left out: it advises to run the code in the file.
        raise UserError(
            f"{path}: not a voice of tensors alone (no pickle, or one with code in it); take it from its repository "
            "again",
            code="unreadable",
        ) from why
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError) as why:
        reason = (str(why).strip().splitlines() or [type(why).__name__])[0]
        raise UserError(
            f"{path}: not a voice of tensors alone ({reason}); take it from its repository again", code="unreadable"
        ) from why
    if not isinstance(state, dict) or not all(isinstance(state.get(key), Tensor) for key in ("embeddings", "cache")):
        found = ", ".join(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise UserError(
            f"{path}: holds {found or 'nothing'}, not the embeddings and cache of a voice", code="bad-weights"
        )
    embeddings, cache = state["embeddings"], state["cache"]
    is_one = embeddings.ndim >= 2 and embeddings.shape[1:-1].numel() == 1 and len(cache) == 1 == cache.ndim - 2
    if not is_one or not embeddings.is_floating_point() or cache.is_floating_point() or not embeddings.numel():
        shapes = f"embeddings {list(embeddings.shape)} and cache {list(cache.shape)}"
        raise UserError(
            f"{path}: not a voice, with {shapes} instead of [frames, 1, 1, width] and [1, 17, slots]",
            code="bad-weights",
        )
    return PickledVoice(path=path, embeddings_PD=embeddings.flatten(0, -2), cache_KW=cache[0].long())


def recover(voice: PickledVoice, weights: Mapping[str, StoredTensor], config: LMConfig) -> RecoveredVoice:
    """Recovers the codes of a voice with the embedding tables of the model it was made for.

    weights: as `read_header` returns them; only the tables of the temporal transformer are read.
    Raises: UserError ("bad-combination") if the voice is another model's, or its sums cannot be taken apart
    ("bad-weights").
    """
    width, dtype = voice.embeddings_PD.shape[1], voice.embeddings_PD.dtype
    if width != config.dim:
        raise UserError(
            f"{voice.path}: made for a model of width {width}, not {config.dim}; name its model",
            code="bad-combination",
        )
    inputs_KP = _known_inputs(voice, config)
    cards = {"text_emb.weight": config.text_card} | {f"emb.{k}.weight": config.card for k in range(config.n_q)}
    for name, card in cards.items():
        if name not in weights or weights[name].shape != (card + 1, width):
            raise UserError(
                f"the weights hold no {name} of shape {[card + 1, width]}: they do not fit their config.json",
                code="bad-weights",
            )
    tables = [weights[name].read().to(dtype) for name in cards]
    # A view of the inputs: the codes that are found below fill it.
    sums_PD, fed_KP = voice.embeddings_PD, inputs_KP[:, : len(voice.embeddings_PD)]
    if _wrong(fed_KP[:, :1], sums_PD[:1], tables).any():
        raise UserError(
            f"{voice.path}: does not begin as prompts of this model do; name the model it was made for",
            code="bad-combination",
        )
    unknown_KP = fed_KP == ZERO_ID
    wrong_P = unknown_KP.any(0)
    for decode in (nearest_rows, nearest_rows_whitened):
        # Position 1 has start ids in the delayed codebooks, and so fewer unknown streams.
        for unknown in {tuple(column) for column in unknown_KP[:, wrong_P].T.tolist()}:
            unknown_K = torch.tensor(unknown)
            columns_M = (wrong_P & (unknown_KP == unknown_K[:, None]).all(0)).nonzero().flatten()
            known_KM = fed_KP[:, columns_M].masked_fill(unknown_K[:, None], ZERO_ID)
            rest_MD = sums_PD[columns_M].float() - _embed(known_KM, tables, torch.float32)[0]
            streams = unknown_K.nonzero().flatten()
            fed_KP[streams[:, None], columns_M] = decode(rest_MD, [tables[k][: config.card].float() for k in streams]).T
        wrong_P = _wrong(fed_KP, sums_PD, tables)
        if not wrong_P.any():
            break
    else:
        frames = ", ".join(map(str, wrong_P.nonzero().flatten().tolist()[:5]))
        raise UserError(
            f"{voice.path}: {int(wrong_P.sum())} of {len(sums_PD)} frames ({frames} ...) are no sums of this model's "
            "embeddings; it is damaged, or another model's",
            code="bad-weights",
        )
    _check_ring(voice, inputs_KP)
    exact = torch.equal(_embed(fed_KP, tables, dtype)[0], sums_PD)
    return RecoveredVoice(codes_QP=_undelayed(inputs_KP, config), exact=exact)


def nearest_rows(sums_ND: Tensor, tables: Sequence[Tensor], tries: int = 1) -> Tensor:
    """Finds one row of each of Q tables [V, D] whose sum is near each of N sums, and returns their ids [N, Q].

    It is a coordinate descent, which takes the best row of one table at a time, given those of the others, until
    nothing changes. It starts from the tables' means; further tries start from random rows, and the nearest end counts.
    """
    draw = torch.Generator().manual_seed(0)
    count = len(sums_ND)
    wanted = sums_ND.repeat(tries, 1)
    chosen = []
    for table_VD in tables:
        random = torch.randint(len(table_VD), (count * (tries - 1),), generator=draw)
        chosen.append(torch.cat((table_VD.mean(0).expand(count, -1), table_VD[random])))
    squares = [table_VD.square().sum(1) for table_VD in tables]
    rest = wanted - sum(chosen)
    ids = torch.full((len(wanted), len(tables)), ZERO_ID)
    for _ in range(SWEEPS):
        before = ids.clone()
        for c, table_VD in enumerate(tables):
            wanted = rest + chosen[c]
            ids[:, c] = (squares[c] - 2 * wanted @ table_VD.T).argmin(1)
            chosen[c] = table_VD[ids[:, c]]
            rest = wanted - chosen[c]
        if torch.equal(ids, before):
            break
    best_N = rest.square().sum(1).view(tries, count).argmin(0)
    return ids.view(tries, count, -1)[best_N, torch.arange(count)]


def nearest_rows_whitened(sums_ND: Tensor, tables: Sequence[Tensor]) -> Tensor:
    """`nearest_rows` with all directions counted the same, by how much the sums vary in them.

    Trained tables share a few strong directions, in which the rows of one look like those of another. The many weak
    ones separate them, down to the rounding of the sums. This costs a D x D factorisation.
    """
    means = [table_VD.mean(0) for table_VD in tables]
    centred = [table_VD - mean_D for table_VD, mean_D in zip(tables, means, strict=True)]
    covariance_DD = sum(table_VD.T @ table_VD / len(table_VD) for table_VD in centred)
    assert isinstance(covariance_DD, Tensor)
    covariance_DD.diagonal().add_((ROUNDING * sums_ND.square().mean().sqrt()) ** 2 + TINY)
    factor_DD = torch.linalg.cholesky(covariance_DD)

    def whiten(rows: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(factor_DD, rows.T, upper=False).T

    return nearest_rows(whiten(sums_ND - sum(means)), [whiten(table_VD) for table_VD in centred], TRIES)


def _known_inputs(voice: PickledVoice, config: LMConfig) -> Tensor:
    """Tokens [17, P + 1] of positions 0 .. P, as far as the ring holds them; the agent's others are ZERO_ID."""
    num_frames, num_slots = len(voice.embeddings_PD) + 1, voice.cache_KW.shape[1]
    if voice.cache_KW.shape[0] != config.num_streams or num_slots < max(config.delays) + 2:
        raise UserError(
            f"{voice.path}: not a voice of this model, with a cache of shape {list(voice.cache_KW.shape)}",
            code="bad-combination",
        )
    inputs_KP = torch.full((config.num_streams, num_frames + 1), ZERO_ID)
    for k, delay in enumerate(config.delays):
        last = num_frames - 1 + delay  # The position of the last frame's token of this stream.
        inputs_KP[k, num_frames - 1 : last + 1] = voice.cache_KW[k, torch.arange(num_frames - 1, last + 1) % num_slots]
        if k == 0 or k > config.num_codebooks:
            inputs_KP[k, : num_frames - 1] = config.text_padding_id if k == 0 else inputs_KP[k, last]
        inputs_KP[k, : delay + 1] = config.text_start_id if k == 0 else config.audio_start_id
    codes_KP = inputs_KP[1:, max(config.delays) + 1 :]
    if int(codes_KP.min()) < ZERO_ID or int(codes_KP.max()) >= config.card:
        raise UserError(
            f"{voice.path}: not a voice of this model, since its cache holds ids outside 0..{config.card - 1}",
            code="bad-combination",
        )
    return inputs_KP


def _check_ring(voice: PickledVoice, inputs_KP: Tensor) -> None:
    """Raises UserError if the ring holds other tokens than those found for the positions that it holds."""
    num_positions, num_slots = inputs_KP.shape[1] - 1, voice.cache_KW.shape[1]
    for p in range(max(0, num_positions + 1 - num_slots), num_positions):
        if not torch.equal(inputs_KP[:, p], voice.cache_KW[:, p % num_slots]):
            raise UserError(
                f"{voice.path}: its embeddings and its cache differ at frame {p}; it is damaged, or no voice",
                code="bad-weights",
            )


def _embed(inputs_KN: Tensor, tables: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Sums [N, D], added in the order of the published runtime (text last), and a bound on their rounding errors."""
    rows = [embed_or_zero(inputs_KN[k], tables[k]).to(dtype) for k in (*range(1, len(tables)), 0)]
    total_ND, error_ND = rows[0], torch.zeros(rows[0].shape)
    for row_ND in rows[1:]:
        total_ND = total_ND + row_ND
        error_ND += total_ND.float().abs()
    return total_ND, error_ND * torch.finfo(dtype).eps


def _wrong(inputs_KN: Tensor, sums_ND: Tensor, tables: Sequence[Tensor]) -> Tensor:
    """Whether inputs do not give their sums, [N] bool, up to rounding in whatever order they were added."""
    ours_ND, error_ND = _embed(inputs_KN, tables, sums_ND.dtype)
    return ((ours_ND.float() - sums_ND.float()).abs() > error_ND).any(1)


def _undelayed(inputs_KP: Tensor, config: LMConfig) -> Tensor:
    """The agent's codes [8, P] of frames 0 .. P - 1, where frame 0 gets the codes of frame 1."""
    num_frames = inputs_KP.shape[1] - 1
    delays_Q = config.delays[config.agent_audio]
    codes_QP = torch.stack([inputs_KP[1 + c, 1 + delay : num_frames + delay] for c, delay in enumerate(delays_Q)])
    return torch.cat((codes_QP[:, :1], codes_QP), dim=1)
