"""Text that came with data or weights, made safe to show: on a terminal, in one line, and in a Markdown card."""

import html
import io
import re
import unicodedata
from typing import BinaryIO, TextIO


def visible(text: str) -> str:
    """Returns the text without control characters, which could move the cursor or hide what follows.

    These are the Unicode categories Cc, Cf (which also turns the direction of writing), Cs, and the line separators;
    tabs and ends of lines stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char for char in text if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
    )


def plain(text: str) -> str:
    """Returns the text in one line without control characters; all white space becomes single spaces."""
    return " ".join(visible(" ".join(text.split())).split())


def markdown(text: str) -> str:
    """Returns the text as a piece of a Markdown line or table cell that shows what it holds and does nothing.

    What Markdown or HTML would take for a sign is escaped: tables, headings, lists, emphasis, code, formulas, links and
    tags. Names such as "CC-BY-4.0" and "kokoro/af_heart" stay as they are.
    Source: backslash escapes of CommonMark, https://spec.commonmark.org/0.31.2/#backslash-escapes.
    """
    escaped = re.sub(r"([\\`*\[\]|~$]|(?<!\w)_|_(?!\w))", r"\\\1", html.escape(plain(text), quote=False))
    # Addresses would become links by themselves, and names after an @ would call people.
    escaped = escaped.replace("@", "&#64;").replace("://", "&#58;//")
    escaped = re.sub(r"(?i)\bwww\.", lambda found: found[0].replace(".", "&#46;"), escaped)
    return re.sub(r"^(\d*)([#+.)=-])(?=\s|#|=|-|$)", r"\1\\\2", escaped)


def code(text: str) -> str:
    """Returns the text as the inside of a Markdown code span in a table or line, where no escape works."""
    return plain(text).replace("`", "'").replace("|", "/")


class VisibleOutput(io.TextIOBase):
    """Passes on to a stream what is visible of a text, so that no name in foreign data can steer the terminal."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Writes what `visible` leaves of the text; returns the number of characters that were given."""
        self.stream.write(visible(text))
        return len(text)

    def flush(self) -> None:
        """Flushes the stream."""
        self.stream.flush()

    @property
    def buffer(self) -> BinaryIO:
        """The bytes behind the stream, for what has to keep its encoding; nothing of them is held back."""
        return self.stream.buffer

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The stream's encoding."""
        return self.stream.encoding

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self.stream.isatty()

    def fileno(self) -> int:
        """The number of the stream's file."""
        return self.stream.fileno()

    def writable(self) -> bool:
        """Always true."""
        return True
