"""Every error the kernels raise on purpose; the class says which exit code the command ends with.

KernelError
├── InvalidParameters            exit code 2: the command line or the parameter file is wrong
├── UnusableInput                exit code 3: the input can't be used as it is
│   └── NotThereYet              waiting may help: a file or dataset that a writer may still make
├── FrameUnreadable              one frame; counted as failed, the rest goes on
└── OutputUnwritable             exit code 5: disk full, no permission
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """What the command's exit code says (``docs/reference/kernel-command-line.md``)."""

    COMPLETE = 0
    FAULT = 1
    WRONG_USE = 2
    UNUSABLE_INPUT = 3
    PARTIAL = 4
    OUTPUT_UNWRITABLE = 5


class KernelError(Exception):
    """Root of all errors raised on purpose.

    Parameters
    ----------
    message
        What is wrong and where (file, dataset, parameter).
    remedy
        What the reader can do next.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.FAULT

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy

    @property
    def one_line(self) -> str:
        """Message and remedy in one line."""
        text = f"{self} ({self.remedy})" if self.remedy else str(self)
        return " ".join(text.split())


class InvalidParameters(KernelError):
    """The command line or the parameter file is wrong."""

    exit_code = ExitCode.WRONG_USE


class UnusableInput(KernelError):
    """The input can't be used as it is."""

    exit_code = ExitCode.UNUSABLE_INPUT


class NotThereYet(UnusableInput):
    """A file or dataset is missing or unreadable now, and a writer may still change that.

    `settled` says that nobody has touched the place for a while, so that waiting is of no use.
    """

    def __init__(self, message: str, *, remedy: str = "", settled: bool = False) -> None:
        super().__init__(message, remedy=remedy)
        self.settled = settled

    def after(self, waiting: str) -> NotThereYet:
        """Return the same error, with words on how long the place was waited for."""
        return NotThereYet(f"{self}; {waiting}", remedy=self.remedy, settled=self.settled)


class FrameUnreadable(KernelError):
    """One frame can't be read or decoded; it is counted as failed and the rest goes on."""


class OutputUnwritable(KernelError):
    """The result or the progress file can't be written."""

    exit_code = ExitCode.OUTPUT_UNWRITABLE
