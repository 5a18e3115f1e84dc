"""Find secrets by structure and mask them: in text, command lines, environments and documents.

A secret stands behind a name that says so (`secret_shapes` has the names), in a URL or a header, or
is a token of a known form. Values that were found in a job are masked wherever they appear again.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from urllib.parse import quote

from oomguard.secret_shapes import (
    FORMS,
    HEADERS,
    Telling,
    is_secret,
    looks_random,
    may_hide,
    telling,
    tells_in_url,
)

MASK = "***"
_BARE_MASK = re.compile(r"(?m)(?<=[:,\[\-]\s)\*\*\*(?=[\s,\]}]|$)|(?<=\[)\*\*\*(?=[\s,\]}]|$)")
#: A shorter value is masked where it stands, but not looked for elsewhere.
KNOWN_LENGTH = 8

Span = tuple[int, int]
Known = frozenset[str]
_NONE_KNOWN: Known = frozenset()


#: name=value, name: value, "name": "value", name => value, --name value.
_NAMED = re.compile(
    r"(?<![\w.\-])(?:(?P<flag>--?(?=[A-Za-z_][\w.\-]*[ \t]+\S))|--?)?(?P<name>[A-Za-z_][\w.\-]*)"
    r"(?:(?P<quote>\\?[\"'])?\]?[ \t]*(?P<sep>=>|:=|={1,2}|:(?!//))[ \t]*|(?(flag)[ \t]+|(?!)))"
)
#: A quoted piece on one line, or in a config on several; shells join 'it'"'"'s'.
_QUOTES = r"\\\"(?:(?!\\\"){any})*\\\"|\"(?:[^\"\\{end}]|\\.)*\"|'(?:[^'\\{end}]|\\.|'\"'\"'|'')*'"
_QUOTED = re.compile(_QUOTES.format(any=".", end="\n"))
_QUOTED_LINES = re.compile(_QUOTES.format(any="[^\0]", end=""))
_WORD_END = re.compile(r"[\s`;)\]}>\"']|,(?=\s|$)|&(?=\w+=)|\\[\"']|$", re.MULTILINE)
#: Where a value that may have spaces ends: before a flag, another name, a comment, a quote.
_VALUE_END = re.compile(
    r"\s+--?[A-Za-z]|[\s,;&]+\\?[\"']?[A-Za-z_][\w.\-]*\\?[\"']?\s*(?:=|:\s)|\s+[#|]"
    r"|\\?[\"'](?=[\s,;:)\]}]|$)|[ \t\r]*$",
    re.MULTILINE,
)
_LINE_END = re.compile(r"[ \t]+#|[ \t\r]*$", re.MULTILINE)
_HEADER_END = re.compile(r"\\?[\"'](?=[\s,;:)\]}]|$)|[ \t\r]*$", re.MULTILINE)
_MORE = re.compile(r"[\"']?[ \t]+(?=[^\s\-])")
_PLACEHOLDER = re.compile(r"<[^<>\n]*>|\$?\{\{[^{}\n]*\}\}|\$\{[^{}\n]*\}")
_ANSI = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")
_BRACKETS = {"[": "]", "{": "}", "(": ")"}
_URL = re.compile(r"\b[A-Za-z][A-Za-z0-9+.\-]*://(?P<rest>(?:[^\s\"'<>`]|'(?=[^\s\"]*@))*)")
_USER = re.compile(r"(?P<user>[^:/?#@]*):(?P<hide>.+)@")
_ALONE = re.compile(r"(?P<hide>[^:/?#@]{8,})@")
_PARAMETER = re.compile(r"[?&;#](?P<name>[\w.\-%]+)=(?P<hide>[^&#;\s]+)")
_BLOCK = re.compile(r"(?:[!&]\S+[ \t]+)*(?:[|>][+\-\d]*)?[ \t]*(?:#.*)?(?=\r?$)", re.MULTILINE)


# --- Text ---


def redact(text: str, known: Known = _NONE_KNOWN) -> str:
    """Mask the secrets in free text, and the values that are `known` to be secrets."""
    return _masked(text, secret_spans(text, known))


def redact_config(text: str, known: Known = _NONE_KNOWN) -> str:
    """Mask the secrets in a config file: values of several lines, blocks and lists as well.

    A mask that is a whole value is quoted: the text stays valid, as `***` is an alias in YAML.
    """
    masked = _masked(text, secret_spans(text, known, setting=True))
    return _BARE_MASK.sub(f'"{MASK}"', masked)


def secret_spans(text: str, known: Known = _NONE_KNOWN, *, setting: bool = False) -> list[Span]:
    """Return where secrets stand in a text, in order; `setting`: the text is a config file."""
    found = list(_known_spans(text, known))
    if "\x1b" in text:
        text = _ANSI.sub(lambda match: " " * len(match[0]), text)
    if may_hide(text):
        found += [*_form_spans(text), *_url_spans(text), *_named_spans(text, setting=setting)]
    return _merged(found)


def _known_spans(text: str, known: Known) -> Iterator[Span]:
    for value in known:
        at = text.find(value)
        while at >= 0:
            yield at, at + len(value)
            at = text.find(value, at + len(value))


def _form_spans(text: str) -> Iterator[Span]:
    for form in FORMS.values():
        for match in form.finditer(text):
            hidden = [match.span(name) for name, value in match.groupdict().items() if value]
            yield from hidden or [match.span()]


def _url_spans(text: str) -> Iterator[Span]:
    for url in _URL.finditer(text):
        begin, end = url.span("rest")
        user = _USER.match(text, begin, end)
        alone = _ALONE.match(text, begin, end)
        if user:
            yield user.span("hide")
        elif alone and (url[0].startswith("http") or looks_random(alone["hide"])):
            yield alone.span("hide")
        for one in _PARAMETER.finditer(text, begin, end):
            if tells_in_url(one["name"]):
                yield one.span("hide")


def _named_spans(text: str, *, setting: bool) -> Iterator[Span]:
    at = 0
    while match := _NAMED.search(text, at):
        at = match.end("name")
        strict = setting or bool(match["flag"])
        how = telling(match["name"], setting=strict)
        for begin, end in _values(text, match, how, setting=strict):
            at = max(at, end)
            yield begin, end


def _values(text: str, name: re.Match[str], how: Telling, *, setting: bool) -> Iterator[Span]:
    """Yield where the values behind a name stand."""
    at = name.end()
    if how is Telling.NOTHING:
        return
    if setting and name["sep"] == ":" and (block := _BLOCK.match(text, at)):
        yield from _block(text, name.start(), block.end(), how)
        return
    if text[at : at + 1] in _BRACKETS and (end := _closing(text, at, lines=setting)):
        inside = [word.strip("\"'") for word in re.split(r"[,\s]+", text[at + 1 : end])]
        if any(is_secret(how, word, setting=setting) for word in inside):
            yield at + 1, end
        return
    while True:
        begin, end = _value(text, at, name, how, setting=setting)
        if is_secret(how, text[begin:end], setting=setting):
            yield begin, end
        more = _MORE.match(text, end) if name["flag"] and name["name"].endswith("s") else None
        if more is None:
            return
        at = more.end()


def _value(text: str, at: int, name: re.Match[str], how: Telling, *, setting: bool) -> Span:
    """Return where one value stands, inside its quotes where it is one quoted piece."""
    begin, quoted = at, _QUOTED_LINES if setting else _QUOTED
    while piece := quoted.match(text, at):
        at = piece.end()
        if begin == piece.start() and _WORD_END.match(text, at):
            width = 2 if piece[0].startswith("\\") else 1
            return begin + width, at - width
        while not _WORD_END.match(text, at):  # as a shell joins 'a'"b"c
            at += 1
    if placeholder := _PLACEHOLDER.match(text, at):
        at = placeholder.end()
    if at > begin:
        return begin, at
    ends = _WORD_END if how is Telling.ONE_WORD else _VALUE_END
    if name["sep"] == ":" and not name["quote"]:
        header = name["name"].lower().endswith(HEADERS)
        ends = _HEADER_END if header else _LINE_END if setting else ends
    found = ends.search(text, at)
    end = found.start() if found else len(text)
    inner = text.find(name["quote"], at, end) if name["quote"] else -1
    return begin, (end if inner < 0 else inner)


def _block(text: str, name_at: int, at: int, how: Telling) -> Iterator[Span]:
    """Yield the lines of a YAML block or list: deeper than its key, or items at the same depth."""
    start = text.rfind("\n", 0, name_at) + 1
    depth = _depth(text[start:name_at])
    for line in re.finditer(r"\n(?P<indent>[ \t]*(?:-[ \t]+)*)(?P<rest>[^\n]*)", text[at:]):
        rest = line["rest"].rstrip("\r")
        inner = len(line["indent"].expandtabs())
        if rest and not (inner > depth):
            return
        value = re.sub(r"^[\w.\-]+:\s+", "", rest).strip("\"'")
        if rest and is_secret(how, value, setting=True):
            yield at + line.start("rest"), at + line.start("rest") + len(rest)


def _depth(before: str) -> int:
    return len(re.match(r"[ \t]*(?:-[ \t]+)*", before)[0].expandtabs())  # type: ignore[index]


def _closing(text: str, at: int, *, lines: bool) -> int | None:
    """Return where the bracket at `at` closes; None where it does not, or only on another line."""
    stack: list[str] = []
    for number in range(at, len(text)):
        letter = text[number]
        if letter == "\n" and not lines:
            return None
        if letter in _BRACKETS:
            stack.append(_BRACKETS[letter])
        elif stack and letter == stack[-1]:
            stack.pop()
            if not stack:
                return number
    return None


def _merged(spans: Iterable[Span]) -> list[Span]:
    merged: list[Span] = []
    for begin, end in sorted(span for span in spans if span[0] < span[1]):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def _masked(text: str, spans: Sequence[Span]) -> str:
    pieces, at = [], 0
    for begin, end in spans:
        pieces += [text[at:begin], MASK]
        at = end
    return "".join(pieces) + text[at:]


# --- Commands and documents ---


def redact_argv(argv: Sequence[str], known: Known = _NONE_KNOWN) -> tuple[str, ...]:
    """Mask secrets in a command line, also if the value is a separate argument."""
    return tuple(
        _masked(word, spans) for word, spans in zip(argv, _argv_spans(argv, known), strict=True)
    )


def _argv_spans(argv: Sequence[str], known: Known) -> Iterator[list[Span]]:
    """Yield where secrets stand in each word; `how` is what the flag before it says."""
    how, flag, many = Telling.NOTHING, "", False
    for word in argv:
        is_flag = re.match(r"--?[A-Za-z]", word) is not None
        ends = word.startswith("--") or (is_flag and not flag)
        if how is not Telling.NOTHING and not ends:
            hidden = is_secret(how, word, setting=True)
            yield [(0, len(word))] if hidden else secret_spans(word, known, setting=True)
            how, flag = how if many else Telling.NOTHING, ""
            continue
        how = Telling.NOTHING
        name, equals, value = word.partition("=")
        named = re.fullmatch(r"[-+~]{0,2}[\w./-]+", name)
        if is_flag and not equals:
            how, flag, many = telling(word.lstrip("-")), word, word.endswith("s")
            yield []
        elif equals and named and is_secret(telling(name.lstrip("-+~")), value, setting=True):
            yield [(len(name) + 1, len(word))]
        else:
            yield secret_spans(word, known, setting=True)


def redact_env(env: Mapping[str, str], known: Known = _NONE_KNOWN) -> dict[str, str]:
    """Mask secrets in environment variables, by their names and by their values."""
    return {
        name: MASK if is_secret(telling(name), value, setting=True) else redact(value, known)
        for name, value in env.items()
    }


def redact_document(
    value: object, known: Known = _NONE_KNOWN, *, keep: frozenset[str] = frozenset()
) -> object:
    """Mask secrets in a JSON value, by its keys and in its texts; values of `keep` stay."""
    if isinstance(value, Mapping):
        return {
            redact(key, known): one if key in keep else _member(str(key), one, known, keep)
            for key, one in value.items()
        }
    if isinstance(value, str):
        return redact(value, known)
    if isinstance(value, list | tuple):
        if value and all(isinstance(one, str) for one in value):
            return type(value)(redact_argv(value, known))
        return type(value)(redact_document(one, known, keep=keep) for one in value)
    return value


def _member(key: str, value: object, known: Known, keep: frozenset[str]) -> object:
    how = telling(key)
    if how is Telling.NOTHING or value is None or isinstance(value, bool):
        return redact_document(value, known, keep=keep)
    if isinstance(value, Mapping):
        below = how is Telling.ANYTHING
        return {
            name: _member(key if below else str(name), one, known, keep)
            for name, one in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(_member(key, one, known, keep) for one in value)
    return MASK if is_secret(how, str(value), setting=True) else redact_document(value, known)


# --- Values that are known to be secrets ---


def found_in(
    *, argv: Sequence[str] = (), env: Mapping[str, str] = {}, texts: Iterable[str] = ()
) -> Known:
    """Return the secrets in a job, in the forms in which they may appear again."""
    values = [
        word[a:b]
        for word, spans in zip(argv, _argv_spans(argv, _NONE_KNOWN), strict=True)
        for a, b in spans
    ]
    values += [
        value for name, value in env.items() if is_secret(telling(name), value, setting=True)
    ]
    for text in texts:
        for begin, end in secret_spans(text, setting=True):
            whole = text[begin:end]
            values += [whole, whole.strip("\"'"), *re.split(r"[\"',\s]+", whole)]
    kept = {value for value in values if len(value) >= KNOWN_LENGTH and not value.isspace()}
    return frozenset(form for value in kept for form in _spellings(value))


def _spellings(value: str) -> set[str]:
    """Return a value as it is and as JSON, a shell, a URL and Python's repr write it."""
    return {
        value,
        json.dumps(value)[1:-1],
        shlex.quote(value),
        quote(value, safe=""),
        repr(value)[1:-1],
    }
