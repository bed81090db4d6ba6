"""Where rows come from."""

from __future__ import annotations

from dataclasses import dataclass

from torchrec_xd.errors import UserError


@dataclass(frozen=True)
class Origin:
    """Where rows come from, for error messages."""

    file: str
    first_row: int
    """Index of the first row within the file."""

    def fault(self, column: str, row: int, value: object, rule: str) -> UserError:
        """An error that names file, row, column, value and the rule that it breaks."""
        return UserError(f"{self.file}: row {self.first_row + row}, column '{column}': {value!r} {rule}")
