"""YAML that a stranger may have written, into a tree that knows its line numbers.

Promises: a tree that is safe to walk recursively, or an :class:`InputError` of one line that
names the file, the line and the way out.  Refuses what YAML allows and configuration does not
need: duplicate keys, merge keys, deep nesting, and aliases that multiply.

The tree is made from parser events, because libyaml's composer recurses in C and crashes the
process on deep nesting, where an exception would do.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import yaml

from nodeagent.errors import InputError, printable

DEEPEST = 64
"""Levels of nesting.  A Pod needs about twelve."""
LARGEST = 250_000
"""Nodes in a document, each alias counted as what it stands for."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INTEGER_RE = re.compile(r"0|-?[1-9][0-9]{0,18}")
_TAG = "tag:yaml.org,2002:"
_BOOLEANS: Mapping[str, bool] = yaml.constructor.SafeConstructor.bool_values
_AS_TEXT = {_TAG + "str", _TAG + "value", _TAG + "merge", "!"}


@dataclass(frozen=True, slots=True)
class Odd:
    """A scalar that means something in YAML, and nothing to us: a float, a timestamp, a tag."""

    kind: str


Value: TypeAlias = "str | bool | int | Odd | tuple[Node, ...] | Mapping[str, Node] | None"
_KINDS: tuple[tuple[type, str], ...] = (
    (type(None), "nothing"),
    (bool, "a boolean"),
    (int, "a number"),
    (str, "a string"),
    (Mapping, "a mapping"),
    (tuple, "a list"),
)


@dataclass(frozen=True, slots=True)
class Node:
    """A value, the line that it (or its key) stands on, and what it costs to walk it."""

    value: Value
    line: int
    size: int = 1
    depth: int = 1

    @property
    def kind(self) -> str:
        """What the value is, in words for people."""
        if isinstance(self.value, Odd):
            return f"a {self.value.kind}"
        return next(words for kind, words in _KINDS if isinstance(self.value, kind))


def decode(raw: bytes, name: str, largest: int) -> str:
    """Return *raw* as text, if it is UTF-8 and has at most *largest* bytes."""
    if len(raw) > largest:
        raise InputError(f"{name}: larger than {largest} bytes: is this the right file?")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name}:{line}: not UTF-8 text: save it as UTF-8") from error


def read_documents(text: str, name: str) -> Iterator[Node]:
    """Yield the documents of *text*, empty ones included; *name* is what errors call it.

    >>> next(read_documents("a: [1, x]", "example")).value["a"].value[0].value
    1
    """
    try:
        yield from _Composer(text, name).documents()
    except yaml.MarkedYAMLError as error:
        mark: Any = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{name}{line}: not valid YAML: {printable(str(error.problem))}") from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise InputError(f"{name}: not valid YAML: it holds characters that YAML does not allow") from error


def _line(event: yaml.Event) -> int:
    mark: Any = event.start_mark  # every event of a parser has one
    return int(mark.line) + 1


class _Composer:
    """Turns the parser's events into nodes; one use."""

    def __init__(self, text: str, name: str) -> None:
        self._name = name
        self._events = yaml.parse(text, Loader=_LOADER)
        self._resolver: Any = yaml.resolver.Resolver()  # published without types
        self._anchors: dict[str, Node] = {}

    def documents(self) -> Iterator[Node]:
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                self._anchors = {}
                yield self._node(next(self._events), DEEPEST)

    def _node(self, event: yaml.Event, levels: int) -> Node:
        """Return the node that begins with *event* and may nest *levels* deep."""
        line = _line(event)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise self._error(line, f"unknown alias *{printable(str(event.anchor))}")
            return self._within_limits(replace(self._anchors[event.anchor], line=line), levels)
        if levels == 0:
            raise self._error(line, f"nested more than {DEEPEST} levels deep")
        if isinstance(event, yaml.ScalarEvent):
            node = Node(self._scalar(event), line)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._sequence(line, levels)
        else:
            node = self._mapping(line, levels)
        node = self._within_limits(node, levels)
        if anchor := getattr(event, "anchor", None):
            self._anchors[anchor] = node
        return node

    def _within_limits(self, node: Node, levels: int) -> Node:
        if node.depth > levels:
            raise self._error(node.line, f"nested more than {DEEPEST} levels deep")
        if node.size > LARGEST:
            raise self._error(node.line, f"more than {LARGEST} values, aliases counted as what they stand for")
        return node

    def _sequence(self, line: int, levels: int) -> Node:
        items: list[Node] = []
        size = 1
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(event, levels - 1))
            size += items[-1].size
        return Node(tuple(items), line, size, 1 + max((item.depth for item in items), default=0))

    def _mapping(self, line: int, levels: int) -> Node:
        items: dict[str, Node] = {}
        size = 1
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key, at = self._key(event), _line(event)
            if key in items:
                raise self._error(at, f"the key '{printable(key)}' is here twice: remove one")
            items[key] = replace(self._node(next(self._events), levels - 1), line=at)
            size += 1 + items[key].size
        return Node(items, line, size, 1 + max((item.depth for item in items.values()), default=0))

    def _key(self, event: yaml.Event) -> str:
        line = _line(event)
        if not isinstance(event, yaml.ScalarEvent):
            raise self._error(line, "a key is not plain text")
        if event.value == "<<" and event.implicit[0]:
            raise self._error(line, "merge keys (<<) are not supported: write the keys out")
        return str(event.value)

    def _scalar(self, event: yaml.ScalarEvent) -> str | bool | int | Odd | None:
        """Return text, truth, a whole number or nothing; all else is odd.

        PyYAML's own constructors are not used: they fail on month 13 and on long numbers, and
        take the square of a sexagesimal number's length.
        """
        text: str = event.value
        tag: str = event.tag or self._resolver.resolve(yaml.ScalarNode, text, event.implicit)
        if tag in _AS_TEXT:
            return text
        if tag == _TAG + "null":
            return None
        if tag == _TAG + "bool" and text.lower() in _BOOLEANS:
            return _BOOLEANS[text.lower()]
        if tag == _TAG + "int" and _INTEGER_RE.fullmatch(text):
            return int(text)
        kind = tag.removeprefix(_TAG)
        return Odd({"int": "number in an unusual spelling", "float": "fraction"}.get(kind, printable(kind)))

    def _error(self, line: int, problem: str) -> InputError:
        return InputError(f"{self._name}:{line}: {problem}")
