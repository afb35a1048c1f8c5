"""The members of one dialogue in a tar: their names, their order, and the bytes of those that training reads.

The members that a sample needs lie together and first, so that one short read gets them; record and audio follow.
"""

import io
import json
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipelines.records.schema import Side

CODES, META, AUDIO = "codes.npy", "meta.json", "audio.flac"
MAX_SECONDS = 1e6
"""No word starts later than this."""


class WordStart(NamedTuple):
    """A word of the agent and when it starts, in seconds."""

    text: str
    start: float


def voice_name(side: str) -> str:
    """Member with the codes of a side's voice prompt."""
    return f"{side}.voice.npy"


def text_name(side: str) -> str:
    """Member with a side's role prompt and words."""
    return f"{side}.text.json"


def clip_name(side: str) -> str:
    """Member with a side's voice prompt as recorded."""
    return f"{side}.voice.flac"


def in_order(agent_sides: Sequence[str]) -> list[str]:
    """Names of all members of a dialogue, as they lie in the tar."""
    read = [name for side in agent_sides for name in (voice_name(side), text_name(side))]
    return [CODES, *read, META, AUDIO, *map(clip_name, agent_sides)]


def text_bytes(side: Side) -> bytes:
    """What training reads of a side, in columns, which take 1 ms less to parse than the whole record."""
    columns = {
        "role_prompt": side.role_prompt,
        "words": [word.text for word in side.words],
        "starts": [word.start for word in side.words],
    }
    return json.dumps(columns, ensure_ascii=False, separators=(",", ":")).encode()


def parse_text(data: bytes) -> tuple[str, list[WordStart]]:
    """Role prompt and words out of what `text_bytes` returns. Raises ValueError for anything else."""
    try:
        columns = json.loads(data)
        role_prompt, texts, starts = columns["role_prompt"], columns["words"], columns["starts"]
        words = list(map(WordStart._make, zip(texts, starts, strict=True)))
        # Joining refuses what is no string, and encoding refuses lone surrogates, which are JSON, but no text.
        (role_prompt + "".join(texts)).encode()
    except (ValueError, KeyError, TypeError, RecursionError) as why:
        raise ValueError(f"not the text of a side: {type(why).__name__} {why}") from why
    # The sum is what shows NaN, with which all comparisons are false.
    is_timed = type(texts) is list and set(map(type, starts)) <= {int, float}
    if not is_timed or (starts and not (min(starts) >= 0 and max(starts) < MAX_SECONDS and math.isfinite(sum(starts)))):
        raise ValueError("not the text of a side: not a list of words with a number of seconds for each")
    return role_prompt, words


def npy_bytes(array: npt.NDArray[Any]) -> bytes:
    """An array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def npy_array(data: bytes) -> npt.NDArray[Any]:
    """The array in the bytes of a .npy file. Raises ValueError for anything else, pickles included."""
    try:
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except Exception as why:  # a damaged header fails in a dozen ways (syntax, tokens, sizes, memory)
        raise ValueError(f"not a .npy array: {why}") from why


def parse_codes(data: bytes, what: str, codebooks: int, frames: int | None = None) -> npt.NDArray[np.int16]:
    """Codes out of the bytes of a .npy file; `what` names them in errors, and None stands for any number of frames.

    Shapes: int16 [codebooks, frames].
    Raises: ValueError for anything else, negative codes included.
    """
    array: npt.NDArray[Any]
    head = _npy_head(codebooks, frames) if frames else b"no"
    if data.startswith(head) and frames and len(data) == len(head) + 2 * codebooks * frames:
        array = np.frombuffer(data, np.dtype("<i2"), offset=len(head)).reshape(codebooks, frames)
    else:  # numpy parses the head as Python source, which takes longer than the whole rest of a read
        array = npy_array(data)
    if array.dtype != np.int16 or array.ndim != 2 or array.shape != (codebooks, frames or array.shape[1]):
        wanted = [codebooks, "frames" if frames is None else frames]
        raise ValueError(f"{what} are {array.dtype} {list(array.shape)}, not int16 {wanted}")
    if not array.size or np.min(array) < 0:
        raise ValueError(f"{what} hold the negative value {np.min(array)}" if array.size else f"{what} are empty")
    return array


@lru_cache(maxsize=8192)
def _npy_head(codebooks: int, frames: int) -> bytes:
    """The bytes in front of the values of an int16 array."""
    whole = npy_bytes(np.zeros((codebooks, frames), np.dtype("<i2")))
    return whole[: len(whole) - 2 * codebooks * frames]
