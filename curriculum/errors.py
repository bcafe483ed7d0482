"""What a person can cause or put right, in one line; the line is kept on the way out of another process."""

from __future__ import annotations

import re
from typing import ClassVar

from curriculum.printable import printable

MAX_LINE_CHARS = 600
"""Longest line of a message; of a longer one the middle is left out: what is wrong and the way out are its ends."""

_WORDS: dict[type, str] = {
    type(None): "nothing", bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list",
    dict: "a mapping", bytes: "bytes",
}  # fmt: skip
_ABOUT_TYPES = (TypeError, AttributeError, LookupError, AssertionError, ArithmeticError, RecursionError)
_INSIDES = re.compile(r"NoneType|has no attribute|not subscriptable|<class|object at 0x")
_ERRNO = re.compile(r"\[Errno -?\d+\] ")
_RAISED = re.compile(r"(?:\w+\.)*(\w*(?:Error|Exception|Failed)): (.+)")
"""Line of a traceback that holds the error itself: class and message."""


class UserError(Exception):
    """A recipe, file, folder, option or endpoint that cannot be used.

    It takes one text for each fault: key, value, way out. A subclass whose `__init__` takes something else hands all of
    it to `super().__init__`, since an error that leaves an actor is built again from its `args`, and has its own
    `__str__`.
    """

    exit_status: ClassVar[int] = 2
    """Exit status of the command that it ends."""

    def __str__(self) -> str:
        return "\n".join(shortened(str(fault)) for fault in self.args)

    @property
    def lines(self) -> tuple[str, ...]:
        """One line for each fault, none too long; characters in it that a terminal would obey are escaped."""
        has_own_text = type(self).__str__ is not UserError.__str__
        faults = (str(self),) if has_own_text else self.args
        return tuple(shortened(printable(str(fault))) for fault in faults)


class RunFailed(UserError):
    """A command could not be carried through: a process, machine or endpoint that it needs failed or went away.

    What was reached until then is kept; the message says how to go on.
    """

    exit_status: ClassVar[int] = 1


def shortened(text: str, limit: int = MAX_LINE_CHARS) -> str:
    """Return a text of at most `limit` characters: a longer one without its middle, two thirds of the rest in front."""
    if len(text) <= limit:
        return text
    gap = " … "
    tail = (limit - len(gap)) // 3
    return text[: limit - len(gap) - tail] + gap + text[len(text) - tail :]


def in_line(text: object) -> str:
    """Return a text, a path or a name as a part of one line: line breaks become spaces."""
    return " ".join(str(text).splitlines())


def described(value: object) -> str:
    """Return what a value of a YAML, JSON or parquet file is, in words."""
    return _WORDS.get(type(value), type(value).__name__)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has none."""
    return shortened(printable(next(iter(str(error).strip().splitlines()), type(error).__name__)))


def library_words(error: BaseException) -> str:
    """Return what an error of a library says, in one short line, for a message that names file or key itself.

    What Python says about its own types means nothing to a person, and is left out.
    """
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    line = shortened(_ERRNO.sub("", first_line(error)), 200)
    return "it holds something else than expected" if isinstance(error, _ABOUT_TYPES) or _INSIDES.search(line) else line


def root_cause(error: BaseException) -> BaseException:
    """Return the error that an actor raised, without the one that Ray wraps around it; any other error as it is.

    The wrapper is also an instance of the class that was raised, and can be caught by that class, but its text is the
    traceback of the actor.
    """
    cause = getattr(error, "cause", None)
    return root_cause(cause) if isinstance(cause, BaseException) else error


def one_line(error: BaseException) -> str:
    """Return what went wrong as one line: the message of a `UserError`, class and message of any other error.

    Of an actor that failed while it was made Ray keeps only a text, which ends with a traceback.
    """
    cause = root_cause(error)
    if isinstance(cause, UserError):
        return "; ".join(cause.lines)
    if hasattr(cause, "actor_init_failed"):
        return printable(_last_raised(str(cause)))
    name, line = type(cause).__name__, first_line(cause)
    return name if line == name else f"{name}: {line}"


def _last_raised(text: str) -> str:
    """Return the last line that names an error, without a class of this file; the last line where none does."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = next((match for line in reversed(lines) if (match := _RAISED.fullmatch(line))), None)
    if found is None:
        return lines[-1]
    return found[2] if found[1] in (UserError.__name__, RunFailed.__name__) else f"{found[1]}: {found[2]}"
