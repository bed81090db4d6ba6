"""What validation has said so far, kept in every checkpoint: what early stopping goes by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scores:
    """The best validation score, and how long it has been that."""

    best: float | None = None
    """Larger is better; None: no epoch had a score."""
    waited: int = 0
    """Epochs since, without a better one."""

    def after(self, score: float | None) -> Scores:
        """With one more epoch; one without a score is none with a better one."""
        if score is not None and (self.best is None or score > self.best):
            return Scores(score)
        return Scores(self.best, self.waited + 1)

    def exhaust(self, patience: int | None) -> bool:
        """Whether as many epochs as `patience` brought nothing better."""
        return patience is not None and self.waited >= patience
