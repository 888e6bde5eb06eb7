"""Remember what bytes come to, in bounded memory: what a pod's owner makes long must not fill ours."""

from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from typing import Final, TypeVar, TypeVarTuple

_Ts = TypeVarTuple("_Ts")
_R = TypeVar("_R")

_OVERHEAD: Final = 128
"""Bytes that an entry counts for besides its key."""


def cached_by_bytes(limit: int) -> Callable[[Callable[[*_Ts], _R]], Callable[[*_Ts], _R]]:
    """Remember a pure function's latest results whose arguments' bytes add up to *limit* at most.

    What is longer than that by itself is computed each time.

    >>> @cached_by_bytes(1000)
    ... def double(raw: bytes) -> bytes:
    ...     print("computing")
    ...     return raw + raw
    >>> double(b"ab"), double(b"ab")
    computing
    (b'abab', b'abab')
    """

    def decorate(function: Callable[[*_Ts], _R]) -> Callable[[*_Ts], _R]:
        results: OrderedDict[tuple[object, ...], _R] = OrderedDict()
        size = 0

        @wraps(function)
        def cached(*args: *_Ts) -> _R:
            nonlocal size
            if args in results:
                results.move_to_end(args)
                return results[args]
            result = function(*args)
            if _weight(args) <= limit:
                results[args] = result
                size += _weight(args)
            while size > limit:
                size -= _weight(results.popitem(last=False)[0])
            return result

        return cached

    return decorate


def _weight(arguments: tuple[object, ...]) -> int:
    return _OVERHEAD + sum(len(one) for one in arguments if isinstance(one, bytes))
