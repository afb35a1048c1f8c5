"""What `ppx-chat` is asked for. Importing it is fast, so that the command's help is."""

from dataclasses import dataclass, fields
from pathlib import Path

from model.errors import UserError
from ppx_train.inference.model_options import PastWindow, Precision, check_model_options

NO_VOICE = "none"
"""The name that stands for a conversation without a voice prompt."""
ROLE = "You are a wise and friendly teacher. Answer questions or provide advice in a clear and engaging way."
"""The role of the published PersonaPlex tool."""
SCRIPT_TAIL = 8.0
"""Seconds that a user who speaks by a script listens after the last turn."""
LONGEST_TAIL = 600.0
BATCH = 8
"""Conversations at a time."""
USERS = ("input_wav", "say", "script", "mic")
ONE = ("output_text", "timeline", "overwrite", "mic", "server")
"""Options of one conversation alone."""
MANY = ("roles", "voices", "batch")
"""Options of a folder of conversations alone."""
OUTPUT = ("output_text", "timeline", "overwrite")
"""Options of what is written beside `output_wav`."""
OF_REPLAY = ("replay", "model", "revision", "device", "voice_prompt_dir", "input_wav", "output_wav", *OUTPUT)
"""What a call that is held again does not take from its settings file."""


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """One conversation, or a folder of them. The names are those of the published PersonaPlex tool's options.

    Either `output_wav` is given, for one conversation, or `out`, the folder for all of `roles` by `voices`.
    Either `model` is given, an exported folder or a hub repository, or `server`, the address of one that runs, with its
    `token` if it wants one. The user is one of `input_wav`, `say` (turns), `script` (a file) and `mic`.
    user_voice: of `say` and `script`. tail: seconds that the user is silent after that; None is SCRIPT_TAIL for turns
    and nothing for a recording. output_text, timeline: None puts them beside `output_wav`.
    text_prompts: roles; without any, ROLE. roles: a file with one on each line.
    voice_prompt: None is the model's first voice, if it has any. seed: -1 gives a new conversation each time.
    topk_audio, topk_text: 0 samples from all tokens. device: None is cuda if there is one. precision: None is bf16 on a
    GPU, fp32 on a CPU. past_window: None is DEFAULT_PAST_WINDOW.
    replay: the settings file of a call that is held again, whose recording is `input_wav` or lies beside it.
    gate: whether an agent with a fault makes the command fail.
    """

    output_wav: Path | None = None
    out: Path | None = None
    input_wav: Path | None = None
    say: tuple[str, ...] = ()
    script: Path | None = None
    mic: bool = False
    user_voice: str | None = None
    tail: float | None = None
    model: str | None = None
    server: str | None = None
    token: str | None = None
    revision: str | None = None
    output_text: Path | None = None
    timeline: Path | None = None
    text_prompts: tuple[str, ...] = ()
    roles: Path | None = None
    voice_prompt: str | None = None
    voices: tuple[str, ...] = ()
    voice_prompt_dir: Path | None = None
    batch: int | None = None
    seed: int = -1
    temp_audio: float = 0.8
    temp_text: float = 0.7
    topk_audio: int = 250
    topk_text: int = 25
    greedy: bool = False
    device: str | None = None
    precision: Precision | None = None
    past_window: PastWindow | None = None
    replay: Path | None = None
    gate: bool = False
    overwrite: bool = False

    @property
    def text_prompt(self) -> str:
        """The role of one conversation."""
        return self.text_prompts[-1] if self.text_prompts else ROLE

    @property
    def wav_path(self) -> Path:
        """Where the agent's audio of one conversation goes."""
        assert self.output_wav is not None
        return self.output_wav

    @property
    def text_path(self) -> Path:
        """Where the text goes."""
        return self.output_text or self.wav_path.with_suffix(".json")

    @property
    def timeline_path(self) -> Path:
        """Where the picture goes."""
        return self.timeline or self.wav_path.with_suffix(".png")

    @property
    def user_name(self) -> str:
        """Who speaks to the agent, for titles."""
        file = self.input_wav or self.script
        return file.name if file else "a voice at the microphone" if self.mic else "a synthetic voice"

    @property
    def tail_seconds(self) -> float:
        """How long the user is silent at the end."""
        return self.tail if self.tail is not None else 0.0 if self.input_wav else SCRIPT_TAIL

    def check(self) -> None:
        """Raises UserError for options that are missing, contradict each other or have no effect."""
        if self.replay is not None:
            self._check_replay()
            return
        users = [_flag(name) for name in USERS if getattr(self, name)]
        if len(users) != 1:
            raise UserError(
                f"{' and '.join(users) or 'no user'}: give one of {', '.join(map(_flag, USERS))}",
                code="bad-combination" if users else "missing-option",
            )
        if (self.output_wav is None) == (self.out is None):
            raise UserError(
                "give either --output-wav, for one conversation, or --out, for a folder of them",
                code="missing-option" if self.out is None else "bad-combination",
            )
        if (self.model is None) == (self.server is None):
            raise UserError(
                "no model: give --model, or --server for one that runs"
                if self.model is None
                else "--model and --server: give one of them",
                code="missing-option" if self.model is None else "bad-combination",
            )
        one = self.out is None
        self._refuse(MANY if one else ONE, "--output-wav" if one else "--out")
        if one and len(self.text_prompts) > 1:
            raise UserError("--text-prompt twice with --output-wav: give --out for a folder", code="bad-combination")
        if not (self.say or self.script):
            self._refuse(("user_voice",), users[0])
        if self.mic:
            self._refuse(("tail",), "--mic")
        if self.server is None:
            self._refuse(("token",), "--model")
        else:
            self._refuse(("say", "script", "mic", "gate"), "--server")
        for a, b in (("roles", "text_prompts"), ("voices", "voice_prompt")):
            if getattr(self, a) and getattr(self, b):
                raise UserError(f"{_flag(a)} and {_flag(b)}: give one of them", code="bad-combination")
        self._check_values()

    def _check_replay(self) -> None:
        for each in fields(self):
            if each.name not in OF_REPLAY and getattr(self, each.name) != each.default:
                raise UserError(
                    f"{_flag(each.name)} has no effect with --replay, which asks for what the call had: leave it out",
                    code="bad-combination",
                )
        if self.model is None:
            raise UserError("--replay without --model: name the model that the server had", code="missing-option")
        if self.output_wav is None:
            self._refuse(OUTPUT, "--replay without --output-wav")

    def _refuse(self, names: tuple[str, ...], beside: str) -> None:
        for name in names:
            if getattr(self, name) not in (None, False, ()):
                raise UserError(f"{_flag(name)} has no effect with {beside}: leave it out", code="bad-combination")

    def _check_values(self) -> None:
        check_model_options(self.precision, self.past_window)
        if self.seed < -1:
            raise UserError(
                f"--seed {self.seed}: give a number from 0 on, or -1 for a new conversation each time", code="bad-value"
            )
        if self.tail is not None and not 0 <= self.tail <= LONGEST_TAIL:
            raise UserError(f"--tail {self.tail:g}: give 0 to {LONGEST_TAIL:.0f} seconds", code="bad-value")
        if self.batch is not None and self.batch < 1:
            raise UserError(f"--batch {self.batch}: give 1 or more", code="bad-value")
        if not all(name.strip() for name in self.voices):
            raise UserError(f"--voices {','.join(self.voices)}: a name is empty", code="bad-value")
        if twice := [name for n, name in enumerate(self.voices) if name in self.voices[:n]]:
            raise UserError(f"--voices names {twice[0]} twice: name it once", code="bad-value")


def _flag(name: str) -> str:
    return {"text_prompts": "--text-prompt"}.get(name, "--" + name.replace("_", "-"))
