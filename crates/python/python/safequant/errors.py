"""What can go wrong, one class for each group of the engine's errors.

Every message names file, tensor or module, what was expected and what was found.
"""

from __future__ import annotations

__all__ = [
    "LimitError",
    "MalformedError",
    "MissingError",
    "RefusedError",
    "SafequantError",
    "StorageError",
    "UnsupportedError",
    "UsageError",
]


class SafequantError(Exception):
    """Base of all errors of this package.

    Attributes:
        code: The stable name of the condition (``"shard_missing"``).
        help: What to do about it, where there is something to say.
    """

    code: str
    help: str | None

    def __init__(self, message: str, code: str = "", help: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.help = help

    def __str__(self) -> str:
        message = str(self.args[0]) if self.args else ""
        return f"{message} ({self.help})" if self.help else message

    def __reduce__(self) -> tuple[type[SafequantError], tuple[object, ...]]:
        """Errors cross processes whole: Ray and multiprocessing pickle them."""
        return type(self), (*self.args[:1], self.code, self.help)


class MalformedError(SafequantError, ValueError):
    """A file is wrong: truncated, contradictory, not what it says."""


class UnsupportedError(SafequantError):
    """A file is right, and this version cannot handle it."""


class LimitError(SafequantError):
    """A file asks for more than the limits allow."""


class StorageError(SafequantError, OSError):
    """The system refused to read or write: missing, no permission, disk full."""


class RefusedError(SafequantError):
    """Something would be lost or overwritten, or the job was canceled."""


class UsageError(SafequantError, ValueError):
    """An argument names something that does not exist, or does not go with the others."""


class MissingError(SafequantError, KeyError):
    """The checkpoint has no tensor or module of this name."""
