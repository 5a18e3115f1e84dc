"""`Document`: a YAML or JSON config as text, edited in place so that nothing else in it moves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import yaml

from oomguard.errors import ConfigError, Where

_ALIAS = re.compile(r"\s*:\s*(\*[^\s,\]}]+)")
_PLAIN = re.compile(r"[A-Za-z_/.][\w/.+-]*")
_QUOTES = {"'", '"'}
_BLOCK_SCALARS = {"|", ">"}


@dataclass(frozen=True, kw_only=True)  # no slots: the parsed text is kept in the instance
class Source:
    """A config file of the job as the user wrote it; `path` is absolute."""

    path: str
    text: str

    @cached_property
    def document(self) -> Document:
        """The parsed text: parsed on first use, then shared by all who have this source.

        Raises:
            ConfigError: as `Document.parse` does.
        """
        return Document.parse(self)


class Files(dict[str, str]):
    """Texts of the files that a config names, by absolute path; each is parsed at most once."""

    def __init__(self, texts: Mapping[str, str] | Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(texts)
        self._sources: dict[str, Source] = {}

    @classmethod
    def of(cls, texts: Mapping[str, str]) -> Files:
        """Return texts as files; those that are files already keep what was parsed."""
        return texts if isinstance(texts, Files) else cls(texts)

    def document(self, path: str | None, *, is_json: bool = False) -> Document | None:
        """Return a file, parsed; None if it is missing. `is_json` holds whatever its name.

        Raises:
            ConfigError: as `Document.parse` does.
        """
        if path is None or path not in self:
            return None
        name = f"{path}.json" if is_json and not path.endswith(".json") else path
        source = self._sources.setdefault(name, Source(path=name, text=self[path]))
        return source.document


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One config file; `values` is what a framework reads, `text` the file's own.

    Values follow PyYAML's safe loader (YAML 1.1: `1e-4` is a string), or JSON for a `.json`.
    """

    path: str
    text: str
    values: Mapping[str, object]
    root: yaml.MappingNode

    @classmethod
    def parse(cls, source: Source) -> Document:
        """Read a config text.

        Raises:
            ConfigError: with file and line, if it is not YAML (or JSON), sets a key twice, or is
                not a mapping at its top level.
        """
        is_json = source.path.endswith(".json")
        root, values = _load_json(source) if is_json else _load_yaml(source)
        if not isinstance(root, yaml.MappingNode) or not isinstance(values, dict):
            what = "is not a config: its top level is not a mapping of keys to values"
            raise _error(source, what if source.text.strip() else "is empty", line=1)
        return cls(path=source.path, text=source.text, values=values, root=root)

    @property
    def source(self) -> Source:
        """This document as the source of a job, parsed already."""
        source = Source(path=self.path, text=self.text)
        vars(source)["document"] = self
        return source

    def has(self, key: str) -> bool:
        """Return whether the file states this key; dots go into mappings."""
        return self._lookup(key) is not None

    def get(self, key: str) -> object:
        """Return the value of a key, None where the file does not state it."""
        found = self._lookup(key)
        return found[0] if found else None

    def where(self, key: str) -> Where:
        """Return the line of a key (merged keys: the file without a line)."""
        pair = _pair(self.root, key)
        line = pair[0].start_mark.line + 1 if pair else None
        return Where(file=self.path, line=line, key=key)

    def set(self, key: str, value: object) -> Document:
        """Write one value, touching only its own line, or one new line at the mapping's end.

        Raises:
            ConfigError: if the place cannot be edited without changing other keys (an anchor).
        """
        expected = _with(self.values, key.split("."), value)
        try:
            edited = Document.parse(Source(path=self.path, text=self._edited(key, value)))
        except ConfigError:
            edited = None
        if edited is None or edited.values != expected:
            raise ConfigError(
                f"{key} cannot be changed in place, other keys depend on how it is written",
                where=self.where(key),
                next_step="Write its value out, without an anchor or alias.",
            )
        return edited

    def without(self, key: str) -> str:
        """Return the text without one key of its top; the numbers of all other lines stay."""
        pair = _pair(self.root, key)
        if pair is None:
            return self.text
        start, stop = pair[0].start_mark.index, _end(pair[1], self.text)
        filler = ""
        if self.root.flow_style:
            (start, stop), filler = _with_comma(self.text, start, stop), " "
        else:
            start, stop = self.text.rfind("\n", 0, start) + 1, _line_end(self.text, stop)
        blank = "".join(c if c in "\r\n" else filler for c in self.text[start:stop])
        return self.text[:start] + blank + self.text[stop:]

    def _edited(self, key: str, value: object) -> str:
        pair = _pair(self.root, key)
        if pair is not None:
            return self._replaced(*pair, value)
        parent, rest = _deepest(self.root, key.split("."))
        shown = value if len(rest) == 1 else _nested(rest[1:], value)
        holder = _pair(self.root, key.rsplit(".", 1)[0]) if "." in key else None
        if holder is not None and isinstance(holder[1], yaml.ScalarNode):
            return self._replaced(*holder, {rest[-1]: value})
        return self._inserted(parent, rest[0], shown)

    def _replaced(self, key: yaml.Node, node: yaml.Node, value: object) -> str:
        start, end = node.start_mark.index, _end(node, self.text)
        quote = node.style if isinstance(node, yaml.ScalarNode) else None
        alias = _ALIAS.match(self.text, key.end_mark.index)
        if alias:
            (start, end), quote = alias.span(1), None
        elif _is_block(node):  # it begins on a separate line
            start = self.text.index(":", key.end_mark.index) + 1
        space = " " if self.text[start - 1 : start] == ":" else ""
        return self.text[:start] + space + self._render(value, quote=quote) + self.text[end:]

    def _inserted(self, parent: yaml.MappingNode, key: str, value: object) -> str:
        shown_key = json.dumps(key) if self._is_json else key
        pair = f"{shown_key}: {self._render(value)}"
        if parent.flow_style:
            return self._inserted_in_flow(parent, pair)
        first: yaml.Node = parent.value[0][0]
        indent = " " * first.start_mark.column
        end = _line_end(self.text, _end(parent, self.text))
        newline = "\r\n" if "\r\n" in self.text else "\n"
        head = self.text[:end]
        gap = "" if head.endswith("\n") else newline
        return f"{head}{gap}{indent}{pair}{newline}{self.text[end:]}"

    def _inserted_in_flow(self, parent: yaml.MappingNode, pair: str) -> str:
        close = parent.end_mark.index - 1
        last = _end(parent.value[-1][1], self.text) if parent.value else close
        comma = ", " if parent.value else ""
        if parent.value and "\n" in self.text[last:close]:
            comma = ",\n" + " " * parent.value[-1][0].start_mark.column
        return self.text[:last] + comma + pair + self.text[last:]

    def _render(self, value: object, *, quote: str | None = None) -> str:
        if self._is_json:
            return json.dumps(value, ensure_ascii=False)
        if not isinstance(value, str):
            return _dump(value, default_flow_style=True)
        plain = _PLAIN.fullmatch(value) is not None
        if plain and quote not in _QUOTES and yaml.safe_load(value) == value:
            return value
        return f"'{value}'" if plain and quote == "'" else _dump(value, default_style='"')

    @property
    def _is_json(self) -> bool:
        return self.path.endswith(".json")

    def _lookup(self, key: str) -> tuple[object] | None:
        here: object = self.values
        for part in key.split("."):
            if not isinstance(here, Mapping) or part not in here:
                return None
            here = here[part]
        return (here,)


def _load_yaml(source: Source) -> tuple[yaml.Node | None, object]:
    try:
        loader = yaml.SafeLoader(source.text)
        root = loader.get_single_node()
        _refuse_duplicates(root, source)
        if root is None or "<<" in source.text:
            # Constructing merges keys into the nodes: those that show the text must be others.
            return root, yaml.safe_load(source.text)
        return root, loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        column = f" (column {mark.column + 1})" if mark else ""
        line = mark.line + 1 if mark else None
        raise _error(source, f"not valid YAML: {error.problem}{column}", line=line) from error
    except yaml.reader.ReaderError as error:
        line = source.text.count("\n", 0, error.position) + 1
        character = f"{error.reason} (character #x{ord(source.text[error.position]):04x})"
        raise _error(source, f"not valid YAML: {character}", line=line) from error
    except (yaml.YAMLError, ValueError) as error:
        raise _error(source, f"not valid YAML: {error}", line=_misread(source)) from error
    except RecursionError as error:
        raise _error(source, "nested too deeply") from error


def _misread(source: Source) -> int | None:
    """Return the line of the first value that YAML's own readers fail on, such as a 13th month."""
    loader = yaml.SafeLoader(source.text)
    pairs = [pair for mapping in _mappings(loader.get_single_node()) for pair in mapping.value]
    line = None
    with suppress(ValueError):
        for key, value in pairs:
            line = key.start_mark.line + 1
            if isinstance(value, yaml.ScalarNode):
                loader.construct_object(value)
        line = None
    return line


def _load_json(source: Source) -> tuple[yaml.Node | None, object]:
    try:
        values = json.loads(source.text)
        # JSON may be indented by tabs, which YAML refuses; its strings contain no raw tabs.
        root = yaml.SafeLoader(source.text.replace("\t", " ")).get_single_node()
    except json.JSONDecodeError as error:
        raise _error(
            source, f"not valid JSON: {error.msg} (column {error.colno})", line=error.lineno
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _error(source, f"not JSON that can be edited: {error}") from error
    _refuse_duplicates(root, source)
    return root, values


def _error(source: Source, what: str, *, line: int | None = None) -> ConfigError:
    return ConfigError(what, where=Where(file=source.path, line=line))


def _refuse_duplicates(root: yaml.Node | None, source: Source) -> None:
    for mapping in _mappings(root):
        seen: dict[str, int] = {}
        for key, _ in mapping.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            line = key.start_mark.line + 1
            if name is not None and name in seen:
                raise ConfigError(
                    f"{name} is set here and on line {seen[name]}",
                    where=Where(file=source.path, line=line, key=name),
                    next_step="Keep one of the two.",
                )
            if name is not None:
                seen[name] = line


def _mappings(root: yaml.Node | None) -> Iterator[yaml.MappingNode]:
    todo, seen = [root], set[int]()
    while todo:
        node = todo.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield node
            todo += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            todo += node.value


def _pair(root: yaml.MappingNode, key: str) -> tuple[yaml.Node, yaml.Node] | None:
    parent, rest = _deepest(root, key.split("."))
    if len(rest) != 1:
        return None
    return next(((k, v) for k, v in parent.value if k.value == rest[0]), None)


def _deepest(root: yaml.MappingNode, parts: list[str]) -> tuple[yaml.MappingNode, list[str]]:
    for k, v in root.value:
        if len(parts) > 1 and k.value == parts[0] and isinstance(v, yaml.MappingNode):
            return _deepest(v, parts[1:])
    return root, parts


def _end(node: yaml.Node, text: str) -> int:
    """Return the index after a node's last character; a block ends with its last item."""
    if isinstance(node, yaml.CollectionNode) and _is_block(node) and node.value:
        last = node.value[-1]
        key, value = last if isinstance(last, tuple) else (None, last)
        if key is not None and value.start_mark.index < key.start_mark.index:  # an alias
            alias = _ALIAS.match(text, key.end_mark.index)
            return alias.end(1) if alias else key.end_mark.index
        return _end(value, text)
    end = node.end_mark.index
    if isinstance(node, yaml.ScalarNode) and node.style in _BLOCK_SCALARS:
        return len(text[:end].rstrip())
    return cast("int", end)


def _is_block(node: yaml.Node) -> bool:
    return isinstance(node, yaml.CollectionNode) and not node.flow_style


def _dump(value: object, **style: Any) -> str:
    text: str = yaml.safe_dump(value, allow_unicode=True, width=1 << 30, sort_keys=False, **style)
    return text.removesuffix("\n").removesuffix("...").strip()


def _line_end(text: str, index: int) -> int:
    newline = text.find("\n", index)
    return len(text) if newline < 0 else newline + 1


def _with_comma(text: str, start: int, stop: int) -> tuple[int, int]:
    after = re.compile(r"\s*,").match(text, stop)
    if after:
        return start, after.end()
    before = re.search(r",\s*$", text[:start])
    return (before.start() if before else start), stop


def _with(values: Mapping[str, object], parts: list[str], value: object) -> dict[str, object]:
    inner = values.get(parts[0])
    if len(parts) > 1:
        value = _with(inner if isinstance(inner, Mapping) else {}, parts[1:], value)
    return {**values, parts[0]: value}


def _nested(parts: list[str], value: object) -> object:
    return {parts[0]: _nested(parts[1:], value)} if parts else value
