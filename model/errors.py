"""The one exception for mistakes that the user can fix, and the codes of its kinds."""

from typing import Literal, get_args

from model.text_safety import visible

Code = Literal[
    "bad-value",
    "bad-combination",
    "missing-option",
    "unknown-name",
    "old-form",
    "not-found",
    "exists",
    "in-use",
    "other-settings",
    "cannot-write",
    "unreadable",
    "bad-record",
    "bad-audio",
    "bad-transcript",
    "bad-shards",
    "bad-weights",
    "bad-checkpoint",
    "checksum",
    "unsafe",
    "licence",
    "missing-package",
    "missing-engine",
    "no-device",
    "no-data",
    "too-long",
    "unreachable",
    "no-access",
    "bad-answer",
    "program-failed",
    "lost-work",
]
"""The kinds of mistakes. Scripts and tests may rely on them: messages may be reworded, codes stay.

bad-value        an option or setting has a value that cannot be used
bad-combination  two options contradict each other, or one has no effect beside the other
missing-option   something that must be given is not
unknown-name     no recipe, group, setting, verb, voice, ... of that name
old-form         a command or option of an earlier version
not-found        a file, folder or repository is not there
exists           something is in the way that would be overwritten
in-use           another process works in the same folder
other-settings   a folder was made with other settings, or by something else
cannot-write     a file or folder cannot be written
unreadable       a file is damaged, of another format, or of another encoding
bad-record       JSON, YAML or a table lacks a field, or a field has a wrong value
bad-audio        audio is too short, silent, of the wrong rate or number of channels, or holds NaN
bad-transcript   words or their times do not fit the audio
bad-shards       shards, their index or their manifest are incomplete or contradict each other
bad-weights      tensors are missing, extra, misshapen, or of another model
bad-checkpoint   a checkpoint of a run is damaged, or of another run
checksum         the bytes of a file are not those that are pinned or recorded
unsafe           a file could run code or read the environment, or a path leads out of its folder
licence          no licence or consent is stated, or it forbids what is asked
missing-package  an optional package is not installed
missing-engine   a speech engine, recogniser or its weights are not there
no-device        a GPU or device is not usable
no-data          nothing is left to work on
too-long         a prompt, text or recording exceeds what fits
unreachable      a server, hub or cluster cannot be reached, or fails
no-access        a server or hub refuses, or a repository is gated
bad-answer       the reply of a server or language model cannot be used
program-failed   another program that was called ends with an error
lost-work        jobs kill their workers each time
"""

CODES: tuple[str, ...] = get_args(Code)


class UserError(ValueError):
    """A bad input: the message is one line that names the value and the fix; `code` names the kind of mistake.

    Commands print it without a traceback and exit with code 2. Library code raises it for
    anything that depends on what the user gave: paths, files, settings, prompts.
    """

    def __init__(self, message: str, code: Code) -> None:
        super().__init__(visible(message))  # Names from files may hold what cannot be printed.
        self.code: Code = code

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, Code]]:
        """Keeps the code of an error that crosses processes."""
        return type(self), (str(self), self.code)
