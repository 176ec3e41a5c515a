"""Values that a JSON schema accepts: what a replayed model puts into tools and structured answers."""

import re
from collections.abc import Mapping
from typing import Any

# A schema comes from outside and may refer to itself or ask for a million items.
MOST_DEPTH = 20
MOST_VALUES = 2000
MOST_ITEMS = 20
MOST_LETTERS = 200

NUMBER = re.compile(r"(?<![\w.])-?\d{1,15}(?:\.\d{1,15})?(?![\w.]*\w)")
FORMATS = {
    "date": "2024-01-31",
    "date-time": "2024-01-31T12:00:00Z",
    "time": "12:00:00Z",
    "email": "name@example.com",
    "uri": "https://example.com",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def filled(schema: Any, text: str) -> Any:
    """A value of a JSON schema: required properties only, numbers from a text in their order, strings the text itself.

    Understood are type, enum, const, default, anyOf, oneOf, allOf, $ref within the schema, properties, items, and the
    bounds of numbers, strings and arrays. Patterns are not.

    Example:
        >>> filled({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, "What is 3?")
        {'a': 3}
    """
    return _Filler(schema, text).value(schema, 0)


class _Filler:
    def __init__(self, schema: Any, text: str) -> None:
        self._root = schema
        self._text = " ".join(text.split())[:MOST_LETTERS]
        self._numbers = iter(NUMBER.findall(text))
        self._left = MOST_VALUES

    def value(self, schema: Any, depth: int) -> Any:
        self._left -= 1
        if not isinstance(schema, Mapping) or depth > MOST_DEPTH or self._left < 0:
            return None
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        if isinstance(options := schema.get("enum"), list) and options:
            text = self._text.lower()
            return next((option for option in options if str(option) and str(option).lower() in text), options[0])
        if "default" in schema:
            return schema["default"]
        for combined in ("anyOf", "oneOf", "allOf"):
            if isinstance(parts := schema.get(combined), list) and parts:
                return self.value(_merged(schema, parts) if combined == "allOf" else parts[0], depth + 1)
        return self._of_type(schema, depth)

    def _resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        for _ in range(MOST_DEPTH):
            reference = schema.get("$ref")
            if not isinstance(reference, str) or not reference.startswith("#"):
                break
            found = self._root
            for key in reference.removeprefix("#").strip("/").split("/") if reference != "#" else ():
                found = found.get(key.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
            if not isinstance(found, Mapping):
                return {}
            schema = {**found, **{key: value for key, value in schema.items() if key != "$ref"}}
        return schema

    def _of_type(self, schema: Mapping[str, Any], depth: int) -> Any:
        kind = schema.get("type", "object" if "properties" in schema else "string")
        match kind[0] if isinstance(kind, list) and kind else kind:
            case "object":
                properties, required = schema.get("properties"), schema.get("required")
                if not isinstance(properties, Mapping) or not isinstance(required, list):
                    return {}
                wanted = [name for name in properties if name in required]
                return {name: self.value(properties[name], depth + 1) for name in wanted}
            case "array":
                count = min(int(_bound(schema, "minItems", 1)), MOST_ITEMS)
                return [self.value(schema.get("items", {}), depth + 1) for _ in range(count)]
            case "integer":
                return int(self._number(schema, step=1))
            case "number":
                return self._number(schema, step=1e-6)
            case "boolean":
                return True
            case "null":
                return None
            case _:
                return self._string(schema)

    def _number(self, schema: Mapping[str, Any], step: float) -> float:
        text = next(self._numbers, "1")
        number = float(text) if "." in text else int(text)
        number = max(number, _bound(schema, "minimum", number), _bound(schema, "exclusiveMinimum", -1e15) + step)
        return min(number, _bound(schema, "maximum", number), _bound(schema, "exclusiveMaximum", 1e15) - step)

    def _string(self, schema: Mapping[str, Any]) -> str:
        if isinstance(kind := schema.get("format"), str) and kind in FORMATS:
            return FORMATS[kind]
        text = self._text or "text"
        least = min(int(_bound(schema, "minLength", 0)), MOST_LETTERS)
        return text.ljust(least, ".")[: max(int(_bound(schema, "maxLength", len(text))), least)]


def _bound(schema: Mapping[str, Any], key: str, otherwise: float) -> float:
    bound = schema.get(key)
    sound = isinstance(bound, int | float) and not isinstance(bound, bool) and abs(bound) < 1e15
    return bound if sound else otherwise  # type: ignore[return-value]


def _merged(schema: Mapping[str, Any], parts: list[Any]) -> dict[str, Any]:
    """One schema for all of several; where they differ the last says."""
    merged = {key: value for key, value in schema.items() if key != "allOf"}
    for part in parts:
        if isinstance(part, Mapping):
            both = [each for each in (merged, part) if isinstance(each.get("properties"), Mapping)]
            properties = {name: value for each in both for name, value in each["properties"].items()}
            required = [name for each in both if isinstance(each.get("required"), list) for name in each["required"]]
            merged |= {**part, "properties": properties, "required": required} if both else part
    return merged
