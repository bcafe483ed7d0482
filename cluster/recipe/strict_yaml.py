"""YAML as a recipe needs it: text keys, each once; no tags, aliases or dates; a bounded size and depth."""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.reader import ReaderError

MAX_CHARS = 256 * 1024
"""Longest text; a recipe has a few thousand characters."""
MAX_DEPTH = 32
"""Deepest nesting."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_NUMBERS = {
    "tag:yaml.org,2002:int": (r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F_]+", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
}
_READ_AS_TEXT = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value")


class YamlFault(ValueError):
    """A text that cannot be read; the message has line, fault and way out."""


def read_yaml(text: str) -> Any:
    """Return the value of a YAML text: mappings with text keys, lists, texts, numbers, booleans and None.

    Dates and times are texts, and no number has base 60.

    Raises:
        YamlFault: it is no YAML, or has what no recipe needs: an alias, a tag, a merge, a key twice, a control
            character, more than `MAX_DEPTH` levels or more than `MAX_CHARS` characters.
    """
    if len(text) > MAX_CHARS:
        raise YamlFault(f"{len(text)} characters, more than the {MAX_CHARS} of the longest recipe; shorten it")
    try:
        return _StrictLoader(text).get_single_data()
    except YamlFault:
        raise
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlFault(
            f"line {line}: holds the control character #x{ord(text[error.position]):04x}; remove it"
        ) from error
    except yaml.MarkedYAMLError as error:
        what = f"{error.problem or error.context}; check indentation, brackets and quotes there"
        raise _fault(error.problem_mark, what) from error
    except ValueError as error:
        raise YamlFault(f"an escape in a quoted text names no character ({error}); correct it") from error


def _fault(mark: Any, text: str) -> YamlFault:
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    return YamlFault(where + text)


def _is_alias(event: Any) -> bool:
    return isinstance(event, yaml.AliasEvent)


class _StrictLoader(yaml.SafeLoader):
    """The safe loader, without what surprises."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        this: Any = self  # its declarations have no complete types
        event: Any = this.peek_event()
        if _is_alias(event):
            raise _fault(event.start_mark, f"the alias *{event.anchor:.80} is not read; write the value out")
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise _fault(event.start_mark, f"the tag {tag:.80} is not read; remove it")
        if self._depth == MAX_DEPTH:
            raise _fault(event.start_mark, f"nested deeper than {MAX_DEPTH} levels; remove brackets or indentation")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def flatten_mapping(self, node: Any) -> None:
        """Check the keys, where the safe loader would merge others in."""
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise _fault(key.start_mark, "<< is not read; write the keys out, or use `extends`")
            if key.tag != "tag:yaml.org,2002:str":
                raise _fault(key.start_mark, "a key that is no text; quote it, or check brackets and indentation")
            line = key.start_mark.line + 1
            if key.value in lines:
                what = f"the key {key.value!r:.80} is there twice, first in line {lines[key.value]}; remove one of them"
                raise _fault(key.start_mark, what)
            lines[key.value] = line

    def construct_scalar(self, node: Any) -> Any:
        value: Any = super().construct_scalar(node)
        if found := _CONTROL.search(value):
            raise _fault(node.start_mark, f"holds the control character #x{ord(found[0]):04x}; remove it")
        return value

    def construct_yaml_int(self, node: Any) -> int:
        if len(node.value) > 20 or not -(2**63) <= (value := super().construct_yaml_int(node)) < 2**63:
            raise _fault(node.start_mark, f"{node.value:.40} is beyond every number of a recipe; correct it")
        return value


def _without(resolvers: Any, tags: tuple[str, ...]) -> dict[str, list[tuple[str, Any]]]:
    return {first: [(tag, rule) for tag, rule in rules if tag not in tags] for first, rules in resolvers.items()}


_StrictLoader.yaml_implicit_resolvers = _without(_StrictLoader.yaml_implicit_resolvers, (*_NUMBERS, *_READ_AS_TEXT))
_loader: Any = _StrictLoader
for _tag, (_pattern, _first) in _NUMBERS.items():
    _loader.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern})\\Z"), list(_first))
_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_yaml_int)
