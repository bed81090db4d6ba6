"""The errors that commands report without a traceback."""


class ReportedError(Exception):
    """What a command reports as a message; under torchrun once, and not by every process."""

    told: bool | None = None
    """Whether another process reports it already; None where all processes raise it before they know one another."""


class UserError(ReportedError, ValueError):
    """Something the user can correct: its text gives the value, the rule and the fix."""


class InterruptedRunError(ReportedError):
    """The run was asked to stop (SIGINT, SIGTERM) and wrote a checkpoint; `--resume` goes on from there."""


class OutageError(ReportedError):
    """The network or a store was gone for longer than is waited for. Started again, the run may well succeed."""
