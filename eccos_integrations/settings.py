"""What users write down (models, policies) is checked here: one clear sentence for whatever is wrong."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from eccos_integrations.errors import ConfigError


class Settings(BaseModel):
    """Frozen, checked settings whose errors name the field, the value and the rule.

    Raises:
        ConfigError: A field is unknown, missing or out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True,
                              hide_input_in_errors=True)  # fmt: skip  # an input may be a key

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            owner = type(self).__name__ + (f" of {values['name']!r}" if isinstance(values.get("name"), str) else "")
            if first["type"] == "value_error":  # our own sentence, raised by a validator
                raise ConfigError(f"{owner}: {first['ctx']['error']}") from None
            field = str(first["loc"][0]) if first["loc"] else owner
            if first["type"] == "extra_forbidden":  # its value may be a key typed into the wrong place: never shown
                raise ConfigError(
                    f"{owner}: {field}: unknown field; there are {list(type(self).model_fields)}"
                ) from None
            given = "" if first["type"] == "missing" else f" (given: {first['input']!r:.80})"
            raise ConfigError(f"{owner}: {field}: {first['msg']}{given}") from None

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        return [(name, value) for name, value in super().__repr_args__() if value != self._default(name)]

    @classmethod
    def _default(cls, name: str | None) -> Any:
        return cls.model_fields[name].default if name in cls.model_fields else None
