"""What does not fit in a configuration, in words for whoever wrote it.

Promises: the first place, in the file's order, that is not what its setting allows, what stands there, and what may.
The words follow from the types of :mod:`nodeagent.policy.settings` alone, so a new setting has them already.  (msgspec
says whether data fits; its messages name its own types, and lose the keys of a mapping.)
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

import msgspec

from nodeagent.errors import printable
from nodeagent.policy.document import Odd

Path: TypeAlias = tuple[str | int, ...]
"""Keys and positions that lead to a value, from the top."""

_LONGEST_KEY = 64  # comparing costs the square of the length


@dataclass(frozen=True, slots=True)
class Misfit:
    """A value that its place does not allow, and a sentence that goes on after the path."""

    path: Path
    problem: str


def spell(path: Path) -> str:
    """Return *path* as people write it.

    >>> spell(("ranges", "payments-db", 0))
    'ranges.payments-db[0]'
    """
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def find_misfit(data: object, kind: Any, path: Path = ()) -> Misfit | None:  # noqa: ANN401  # types have no narrower one
    """Return the first misfit of plain *data* that should be of type *kind*; None if it fits.

    >>> find_misfit({"port": 0}, dict[str, bool], ("proxy",))
    Misfit(path=('proxy', 'port'), problem='0 is not allowed: use true or false')
    """
    try:
        msgspec.convert(data, kind)
    except msgspec.ValidationError:
        inside = (
            _unknown(path, key, kind) if not its else find_misfit(item, its, (*path, key))
            for key, item, its in _parts(data, _plain(kind))
        )
        return next(filter(None, inside), None) or Misfit(path, _sentence(data, kind))
    return None


def _parts(data: object, kind: Any) -> Iterator[tuple[str | int, object, Any]]:  # noqa: ANN401  # types again
    """Yield what *data* holds: key, value and the type that it should have, None for a key that no setting has."""
    match data:
        case dict() if _is_section(kind):
            settings = _settings(kind)
            yield from ((key, item, settings.get(key)) for key, item in data.items())
        case dict() if get_origin(kind) is dict:
            yield from ((key, item, get_args(kind)[1]) for key, item in data.items())
        case list() if get_origin(kind) is tuple:
            yield from ((number, item, get_args(kind)[0]) for number, item in enumerate(data))


def _unknown(path: Path, key: str | int, kind: Any) -> Misfit:  # noqa: ANN401  # types again
    known = list(_settings(_plain(kind)))
    close = get_close_matches(str(key)[:_LONGEST_KEY], known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
    return Misfit((*path, key), f"no such setting: {hint}")


def _sentence(data: object, kind: Any) -> str:  # noqa: ANN401  # types again
    wanted = allowed(kind)
    if data is None:
        return f"is empty: use {wanted}, or leave it out"
    quoted = isinstance(data, str) and _plain(kind) in (int, bool)
    return f"{_shown(data)} is not allowed: use {wanted}{', without quotes' if quoted else ''}"


def _shown(data: object) -> str:
    match data:
        case Odd():
            return f"a {data.kind}"
        case Mapping() | list():
            return "a mapping" if isinstance(data, Mapping) else "a list"
        case str():
            return f"'{printable(data)}'"
        case _:
            return str(data).lower()  # a number, true or false


def allowed(kind: Any) -> str:  # noqa: ANN401  # types again
    """Return what a setting of type *kind* may be; a description in the type says it best.

    >>> allowed(tuple[Literal["nft", "legacy"], ...])
    'a list, each entry nft or legacy'
    """
    plain = _plain(kind)
    meta = next((item for item in get_args(kind)[1:] if isinstance(item, msgspec.Meta)), None)
    if meta and (meta.description or plain is int):
        return meta.description or f"a whole number from {meta.ge} to {meta.le}"
    if plain is bool:
        return "true or false"
    if get_origin(plain) is tuple:
        return f"a list, each entry {allowed(get_args(plain)[0])}"
    if get_origin(plain) is dict:
        return f"a mapping of names, each {allowed(get_args(plain)[1])}"
    if _is_section(plain):
        return f"a mapping of {', '.join(_settings(plain))}"
    *words, last = get_args(plain) if get_origin(plain) is Literal else [member.value for member in plain]
    return f"{', '.join(words)} or {last}"


def _plain(kind: Any) -> Any:  # noqa: ANN401  # types again
    """Return *kind* without what only annotates it, and without "may be left out"."""
    if msgspec.UnsetType in get_args(kind):
        return _plain(get_args(kind)[0])
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _is_section(kind: Any) -> bool:  # noqa: ANN401  # types again
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _settings(section: Any) -> dict[str, Any]:  # noqa: ANN401  # types again
    """Return the type of each setting of *section*, under the name that the file gives it."""
    kinds = get_type_hints(section, include_extras=True)
    return {item.encode_name: kinds[item.name] for item in msgspec.structs.fields(section)}
