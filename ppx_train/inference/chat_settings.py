"""What `ppx-chat` is asked for. Importing it is fast, so that the command's help is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PastWindow = Literal["forget", "pin", "refresh"]
"""What becomes of the prompt in calls that outlast the window: it leaves it, stays at its beginning, or is fed anew."""
NO_VOICE = "none"
"""The name that stands for a conversation without a voice prompt."""
ROLE = "You are a wise and friendly teacher. Answer questions or provide advice in a clear and engaging way."
"""The role of the published PersonaPlex tool."""


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """A conversation from file to file. The names are those of the published PersonaPlex tool's options.

    Either `model` is given, an exported folder or a hub repository, or `server`, the address of one that runs, with its
    `token` if it wants one. output_text, timeline: None puts them beside `output_wav`.
    voice_prompt: None is the model's first voice, if it has any. seed: -1 gives a new conversation each time.
    topk_audio, topk_text: 0 samples from all tokens. device: None is cuda if there is one.
    """

    input_wav: Path
    output_wav: Path
    model: str | None = None
    server: str | None = None
    token: str | None = None
    revision: str | None = None
    output_text: Path | None = None
    timeline: Path | None = None
    text_prompt: str = ROLE
    voice_prompt: str | None = None
    voice_prompt_dir: Path | None = None
    seed: int = -1
    temp_audio: float = 0.8
    temp_text: float = 0.7
    topk_audio: int = 250
    topk_text: int = 25
    greedy: bool = False
    device: str | None = None
    overwrite: bool = False

    @property
    def text_path(self) -> Path:
        """Where the text goes."""
        return self.output_text or self.output_wav.with_suffix(".json")

    @property
    def timeline_path(self) -> Path:
        """Where the picture goes."""
        return self.timeline or self.output_wav.with_suffix(".png")
