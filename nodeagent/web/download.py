"""Tables as files: CSV and JSON, written some rows at a time, so that ten thousand are never in memory as text.

A spreadsheet takes text that begins like a formula for one.  What pods' owners can name is text, so such
text gets an apostrophe in front: the guard that spreadsheets know.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from aiohttp import web

Row = Mapping[str, Any]
Rows = Iterable[Row]

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_ROWS_AT_ONCE = 500


async def download(
    request: web.Request, name: str, kind: str, columns: Sequence[str], rows: Rows
) -> web.StreamResponse:
    """Answer with *rows* as the file ``name.kind``; *kind* is one of :data:`FORMATS`."""
    response = web.StreamResponse(
        headers={
            "Content-Type": f"{_TYPES[kind]}; charset=utf-8",
            "Content-Disposition": f"attachment; filename={name}.{kind}",
        }
    )
    await response.prepare(request)
    for chunk in FORMATS[kind](columns, rows):
        await response.write(chunk.encode())
    await response.write_eof()
    return response


def csv_text(columns: Sequence[str], rows: Rows) -> Iterator[str]:
    r"""Yield the rows as CSV under a header, some at a time.

    >>> list(csv_text(["pod", "bytes"], [{"pod": "=1+1", "bytes": -3}]))
    ["pod,bytes\r\n'=1+1,-3\r\n"]
    """
    remaining = iter(rows)
    header: Sequence[object] = columns
    while True:
        text = io.StringIO()
        writer = csv.writer(text)  # ends lines with CR LF (RFC 4180), and so quotes either
        if header:
            writer.writerow(header)
            header = ()
        writer.writerows([guarded(row[column]) for column in columns] for row in islice(remaining, _ROWS_AT_ONCE))
        if not text.tell():
            return
        yield text.getvalue()


def json_text(columns: Sequence[str], rows: Rows) -> Iterator[str]:
    r"""Yield the rows as one JSON list, some at a time.

    >>> "".join(json_text(["pod"], [{"pod": "a"}, {"pod": "b"}]))
    '[\n{"pod": "a"},\n{"pod": "b"}\n]\n'
    """
    remaining = iter(rows)
    before = "[\n"
    while found := [json.dumps({c: row[c] for c in columns}) for row in islice(remaining, _ROWS_AT_ONCE)]:
        yield before + ",\n".join(found)
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def guarded(value: object) -> object:
    """Return *value* as a cell that no spreadsheet computes.

    >>> [guarded(value) for value in ("=HYPERLINK(1)", "shop", None, -1)]
    ["'=HYPERLINK(1)", 'shop', '', -1]
    """
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


FORMATS: Final[Mapping[str, Callable[[Sequence[str], Rows], Iterator[str]]]] = {"csv": csv_text, "json": json_text}
_TYPES: Final = {"csv": "text/csv", "json": "application/json"}
