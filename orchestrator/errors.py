"""Every error this program raises on purpose.

One root, so that a door (command line, service loop) can catch what is foreseen and let the rest be seen as the
fault it is. The class says whether trying again can help.

    OrchestratorError
    ├── InvalidInput                 somebody wrote something wrong; names the place and the remedy
    │   ├── InvalidMessage           a document that isn't a collection message
    │   ├── InvalidSettings          a site file
    │   ├── InvalidTemplate          a job template, or a value that may not stand where the template puts it
    │   └── PathNotAllowed           a file outside the site's allowed roots
    ├── NoRecipe                     nothing in the site file wants this collection (recorded, not a fault)
    ├── GatewayError                 something between us and SLURM
    │   ├── SubmitRefused            SLURM said no, for good: the job does not exist
    │   ├── GatewayUnavailable       transient: the call had no effect
    │   ├── OutcomeUnknown           the call may have had its effect: look before trying again
    │   └── UnknownJob               no such job at the place that was asked
    ├── StoreUnavailable             transient: database locked or out of reach
    ├── DoorUnavailable              transient: broker or spool folder out of reach
    ├── IspybUnavailable             transient: ISPyB out of reach, or it lets us write nothing
    ├── RunDirectoryUnavailable      transient: no space or no rights where a run's files belong
    ├── NotFound                     a run, message or file that was asked for isn't there
    └── StackError                   the private stack couldn't be brought up or down
"""

from __future__ import annotations

from typing import ClassVar


class OrchestratorError(Exception):
    """Root of all errors raised on purpose.

    Parameters
    ----------
    message
        What is wrong and where (file, field, line).
    remedy
        What the reader can do next; shown on its own line by the command line.
    """

    transient: ClassVar[bool] = False
    """Whether the same call may succeed later without anybody's doing."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy

    @property
    def full_text(self) -> str:
        """Message and remedy in one text, for logs and records."""
        return f"{self} ({self.remedy})" if self.remedy else str(self)


class InvalidInput(OrchestratorError):
    """Somebody wrote something that can't be used as it is."""


class InvalidMessage(InvalidInput):
    """A document that isn't a collection message."""


class InvalidSettings(InvalidInput):
    """A site file that can't be used."""


class InvalidTemplate(InvalidInput):
    """A job template that can't be rendered, or a value that may not stand where the template puts it."""


class PathNotAllowed(InvalidInput):
    """A file outside the roots that the site allows."""


class NoRecipe(OrchestratorError):
    """Nothing in the site file wants this collection."""


class GatewayError(OrchestratorError):
    """Something between this program and SLURM."""


class SubmitRefused(GatewayError):
    """SLURM refused the job for good; it does not exist."""


class GatewayUnavailable(GatewayError):
    """The gateway can't be used now; the call surely had no effect.

    Parameters
    ----------
    everywhere
        No other submission could be accepted now either, whatever its partition or account.
    doubtful
        It can't be told whether it passes, or is for good and about this one submission only: others are let by.
    """

    transient: ClassVar[bool] = True

    def __init__(self, message: str, *, remedy: str = "", everywhere: bool = False, doubtful: bool = False) -> None:
        super().__init__(message, remedy=remedy)
        self.everywhere = everywhere
        self.doubtful = doubtful


class OutcomeUnknown(GatewayError):
    """The call may have had its effect although no answer came; look before trying again."""


class UnknownJob(GatewayError):
    """There is no such job at the place that was asked."""


class StoreUnavailable(OrchestratorError):
    """The database is locked or out of reach."""

    transient: ClassVar[bool] = True


class DoorUnavailable(OrchestratorError):
    """A place where messages come in, broker or spool folder, is out of reach."""

    transient: ClassVar[bool] = True


class IspybUnavailable(OrchestratorError):
    """ISPyB is out of reach, or doesn't let this program write what it has to."""

    transient: ClassVar[bool] = True


class RunDirectoryUnavailable(OrchestratorError):
    """A run's directory can't be written: no space, or no rights."""

    transient: ClassVar[bool] = True


class NotFound(OrchestratorError):
    """A run, message or file that was asked for isn't there."""


class StackError(OrchestratorError):
    """The private stack couldn't be brought up or down."""
