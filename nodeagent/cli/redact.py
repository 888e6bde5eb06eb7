r"""Secrets out of what is handed to others.  Pure.

Promises: tokens, passwords, private keys and credentials in addresses are replaced, in text of any kind and in JSON by
the names of its keys; what remains is text of the same shape.  Errs on the side of replacing.  Refuses to promise more:
names of pods and whom they talked to are no secrets here, and stay.

>>> redact_text("Authorization: Bearer abc.def")
'Authorization: [redacted]'
>>> redact_json({"env": [{"name": "DB_PASSWORD", "value": "hunter2"}, {"name": "HOME", "value": "/"}]})
{'env': [{'name': 'DB_PASSWORD', 'value': '[redacted]'}, {'name': 'HOME', 'value': '/'}]}
"""

import json
import re
from contextlib import suppress
from typing import Any, Final

REDACTED: Final = "[redacted]"

_HARMLESS: Final = frozenset({"imagePullSecrets", "secretName", "automountServiceAccountToken", "serviceAccountToken"})

_QUOTE: Final = r"(?:\\?[\"'])?"
_WORD: Final = r"pass(?:word|wd|phrase)|secret|token(?!file)|api[-_]?key|private[-_]?key|key-data|credential"
_SECRET_RE: Final = re.compile(rf"{_WORD}|authorization|cookie", re.IGNORECASE)
"""In a key's name: its value is nobody's business."""
_WORDS: Final = rf"(?:{_WORD})[A-Za-z0-9_.-]{{0,64}}"
_VALUE: Final = r"(?:\\?\"(?:[^\"\\]|\\.)*\\?\"|'[^']*'|[^\s,;}\"']+)"
_OPTION_RE: Final = re.compile(rf"--?[a-z0-9-]{{0,64}}?(?:{_WORD})[a-z0-9-]{{0,64}}", re.IGNORECASE)
"""An option of a command line, whose value is the next word."""
_YAML_KEY: Final = rf"(?:- )?[\"']?[a-z0-9_./-]{{0,64}}?{_WORDS}[\"']?:[ \t]"
_BEGIN, _END = (rf"-----{word} [A-Z0-9 ]{{0,40}}PRIVATE KEY-----" for word in ("BEGIN", "END"))
_SECRET_WORDS: Final = ("passw", "passp", "secret", "token", "api", "private", "key-data", "credential")
# Words of which one is there, in small letters, wherever the pattern matches: most text has none, and is done with.
_PATTERNS: Final = (
    # A private key: to its end, or to the end of what is there of it
    (("-----begin",), rf"{_BEGIN}.*?(?:{_END}|\Z)", REDACTED),
    # scheme://user:password@host
    (("://",), r"(://)[^/\s\"'@]{1,512}@", rf"\g<1>{REDACTED}@"),
    # Headers: a scheme and credentials
    (
        ("authorization",),
        rf"(authorization{_QUOTE}\s*[:=]\s*{_QUOTE})[^\s\"',;\\]+(?:[ \t]+[^\s\"',;\\]+)?",
        rf"\g<1>{REDACTED}",
    ),
    (("bearer", "basic"), r"\b(bearer|basic)[ \t]+[A-Za-z0-9._~+/=-]{8,}", rf"\g<1> {REDACTED}"),
    # A block of YAML, which ends where a line is not deeper than its key; and a line, whose value may have blanks
    (
        _SECRET_WORDS,
        rf"(?m:^)([ \t]*)({_YAML_KEY}+)[|>][-+0-9]{{0,2}}[ \t]*(?:\n(?:\1[ \t]+[^\n]*|[ \t]*(?=\n|\Z)))+",
        rf"\g<1>\g<2>{REDACTED}",
    ),
    (_SECRET_WORDS, rf"(?m:^)([ \t]*{_YAML_KEY}+)(?![\"'{{\[|>])[^\n]+", rf"\g<1>{REDACTED}"),
    (_SECRET_WORDS, rf"({_WORDS}{_QUOTE}\s*[:=]\s*){_VALUE}", rf"\g<1>{REDACTED}"),
    # JSON web tokens, whose first part is a JSON object in base64; tokens of AWS, GitHub and Slack
    (("eyj",), r"\b(?-i:eyJ)[A-Za-z0-9_-]{6,1024}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?", REDACTED),
    (("akia", "asia"), r"\b(?-i:AKIA|ASIA)[A-Z0-9]{16}\b", REDACTED),
    (("gh",), r"\bgh[pousr]_[A-Za-z0-9]{20,}", REDACTED),
    (("xox",), r"\bxox[abprs]-[A-Za-z0-9-]{10,}", REDACTED),
)
_COMPILED: Final = tuple((words, re.compile(text, re.IGNORECASE | re.DOTALL), by) for words, text, by in _PATTERNS)
_END_RE: Final = re.compile(_END)
_KEY_CHARACTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\\ \t\r\n"


def redact_text(text: str) -> str:
    """Return *text* without secrets; in linear time."""
    small = text.lower()
    for words, pattern, replacement in _COMPILED:
        if any(word in small for word in words):
            text = pattern.sub(replacement, text)
    return _without_ends_of_keys(text)


def _without_ends_of_keys(text: str) -> str:
    """Return *text* without private keys whose beginning is not there."""
    parts, begin = [], 0
    for end in _END_RE.finditer(text):
        parts += [text[begin : end.start()].rstrip(_KEY_CHARACTERS), REDACTED]
        begin = end.end()
    return "".join((*parts, text[begin:]))


def redact_json(value: Any) -> Any:  # noqa: ANN401  # any JSON, and the same shape
    """Return *value* without secrets: of keys whose name speaks of one, and in all texts."""
    if isinstance(value, str):
        return _redact_string(value)
    if isinstance(value, list):
        values = [False, *(isinstance(item, str) and _OPTION_RE.fullmatch(item) is not None for item in value)]
        return [REDACTED if is_value else redact_json(item) for is_value, item in zip(values, value, strict=False)]
    if not isinstance(value, dict):
        return value
    named = isinstance(value.get("name"), str) and "value" in value and _is_secret(value["name"])
    return {
        key: REDACTED if _holds_secret(key, item) or (named and key == "value") else redact_json(item)
        for key, item in value.items()
    }


def redact(data: bytes) -> bytes:
    """Return a file's content without secrets, as UTF-8."""
    text = data.decode(errors="replace")
    try:
        return (json.dumps(redact_json(json.loads(text)), indent=1) + "\n").encode()
    except (ValueError, RecursionError):
        return redact_text(text).encode()


def _redact_string(text: str) -> str:
    """Return *text* without secrets; it may be JSON itself, as what ``kubectl apply`` keeps of an object is."""
    if text.startswith(("{", "[")):
        with suppress(ValueError, RecursionError):
            return json.dumps(redact_json(json.loads(text)))
    return redact_text(text)


def _is_secret(name: str) -> bool:
    return name not in _HARMLESS and _SECRET_RE.search(name) is not None


def _holds_secret(key: str, item: object) -> bool:
    """Say whether *item* is a secret by the name of its *key*; a flag is none."""
    return _is_secret(key) and not isinstance(item, bool) and item is not None
