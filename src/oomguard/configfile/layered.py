"""`Settings`: what a job is started with, a config file overlaid by command-line arguments."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from oomguard.configfile.document import Document
from oomguard.configfile.flags import Flags
from oomguard.errors import Where


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A job's settings in the framework's own keys.

    `late` arguments override the file, which overrides `early` ones. An edit goes to the layer
    that sets the key and wins; a new key goes into the file, or on the command line without one.
    `code` are values that a script's own code sets where no layer states one: they are read and
    never written.
    """

    late: Flags = field(default_factory=Flags)
    file: Document | None = None
    early: Flags = field(default_factory=Flags)
    code: Flags = field(default_factory=Flags)

    def has(self, key: str) -> bool:
        """Return whether some layer states the key."""
        return self._winner(key) is not None

    def get(self, key: str) -> object:
        """Return the value that the framework will see; None where it is null or not stated."""
        layer = self._winner(key)
        return None if layer is None else layer.get(key)

    def words(self, key: str) -> tuple[str, ...]:
        """Return the items of a list, whose words commas may separate too; () if not stated."""
        layer = self._winner(key)
        if layer is None:
            return ()
        value: object = layer.words(key) if isinstance(layer, Flags) else layer.get(key)
        items = value if isinstance(value, list | tuple) else (value,) if value else ()
        words = (word.strip() for item in items for word in str(item).split(","))
        return tuple(word for word in words if word)

    def origin(self, key: str) -> Where:
        """Return where the winning value is set."""
        layer = self._winner(key) or self.file or self.late
        return layer.where(key)

    def set(self, key: str, value: object) -> Settings:
        """Write one value; None writes null, or takes the word away where null has no spelling."""
        layer = self._winner(key)
        if layer is None or layer is self.code:
            layer = self.late if self.file is None else self.file
        if isinstance(layer, Document):
            return replace(self, file=layer.set(key, value))
        if layer is self.late:
            return replace(self, late=layer.set(key, value))
        return replace(self, early=layer.set(key, value))

    def _winner(self, key: str) -> Flags | Document | None:
        layers = (self.late, self.file, self.early, self.code)
        return next((layer for layer in layers if layer is not None and layer.has(key)), None)
