"""One JSON object being read field by field; whatever is wrong is a ConfigError that names the field."""

from __future__ import annotations

import math
from typing import Any, TypeVar

from storage.errors import ConfigError

T = TypeVar("T")


class Fields:
    """One JSON object being read: each field taken once with its type, what is left over is an error."""

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, dict):
            raise ConfigError(f"{where or 'The specification'} must be a JSON object.")
        self.left = dict(data)
        self.where = f"{where}." if where else ""

    def take(self, name: str, kind: type[T], *default: Any) -> T:
        """The field `name` as a `kind` (an int does for a float), or the default where it is absent. Raises ConfigError."""
        if name not in self.left:
            if default:
                fallback: T = default[0]
                return fallback
            raise ConfigError(f"{self.where}{name} is missing from the training specification.")
        value: Any = self.left.pop(name)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(f"{self.where}{name} must be a {kind.__name__}, not {value!r}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{self.where}{name} must be finite, not {value!r}.")
        checked: T = value
        return checked

    def optional(self, name: str, kind: type[T]) -> T | None:
        """The same, or None where it is null or absent."""
        if self.left.get(name) is None:
            self.left.pop(name, None)
            return None
        return self.take(name, kind)

    def done(self) -> None:
        """Raises ConfigError naming a field that nobody took."""
        if self.left:
            raise ConfigError(
                f"{self.where}{sorted(self.left)[0]} is not a field of the training specification."
            )


def require(condition: bool, message: str) -> None:
    """Raises ConfigError with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def texts(values: list[Any], where: str) -> tuple[str, ...]:
    """A list of strings; raises ConfigError naming `where` it is not one."""
    require(all(isinstance(value, str) for value in values), f"{where} must be a list of strings.")
    return tuple(values)


def is_count(value: Any) -> bool:
    """Whether it is an integer of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
