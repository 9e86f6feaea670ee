"""Early stopping on a noisy objective."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Plateau"]


@dataclass
class Plateau:
    """Tells when the smoothed objective has stopped improving.

    The objective is averaged over consecutive windows, since single estimates fall by chance. A window improves when
    its mean exceeds the best so far by more than a millionth of its size; the run has reached a plateau when
    ``patience`` steps have gone by without one.

    Args:
        patience: steps without improvement that are waited for; ``None`` never stops.
        window: steps per average; at least an epoch, so that every datum counts once.
    """

    patience: int | None
    window: int
    best: float = float("-inf")
    since: int = 0
    _values: list[float] = field(default_factory=list)

    def reached(self, objective: float) -> bool:
        """Take in one step's objective; whether to stop."""
        if self.patience is None:
            return False
        self._values.append(objective)
        self.since += 1
        if len(self._values) >= self.window:
            mean = sum(self._values) / len(self._values)
            self._values.clear()
            if mean > self.best + 1e-6 * abs(mean):
                self.best, self.since = mean, 0
        return self.since >= max(self.patience, 2 * self.window)
