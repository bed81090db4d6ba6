"""The errors that commands report without a traceback."""


class UserError(ValueError):
    """Something the user can correct: its text gives the value, the rule and the fix."""


class InterruptedRunError(Exception):
    """The run was asked to stop (SIGINT, SIGTERM) and wrote a checkpoint; `--resume` goes on from there."""
