"""Text that a column holds: shortened visibly, its characters written out where the column's set lacks them. Pure.

ISPyB's server would refuse such text, or cut it without a word, depending on its mode; neither is left to it.
"""

from __future__ import annotations

from dataclasses import dataclass

_MARK = "…"
_ENCODINGS = {"latin1": "cp1252", "ascii": "ascii"}
"""Python's names for MariaDB's character sets; what isn't here holds all of Unicode, or all of the first plane."""


@dataclass(frozen=True, kw_only=True)
class TextColumn:
    """What a text column holds."""

    length: int
    """In characters."""
    charset: str = "utf8mb4"

    def holds(self, text: str) -> bool:
        """Whether the text fits as it is."""
        return self.fitted(text) == text

    def fitted(self, text: str, whole: str = "") -> str:
        """Return text that the column holds.

        Parameters
        ----------
        whole
            Where the whole text is, said at the end of one that was shortened if there is room for it.
        """
        text = self._encodable(text)
        if len(text) <= self.length:
            return text
        end = self._encodable(f"{_MARK} (whole: {whole})" if whole else _MARK)
        if len(end) > self.length // 2:
            end = self._encodable(_MARK)
        return (text[: max(self.length - len(end), 0)] + end)[: self.length]

    def _encodable(self, text: str) -> str:
        r"""Return text with what the column can't hold written out: ``\udcff``, ``\u20bf``, ``\x00``."""
        text = text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
        encoding = _ENCODINGS.get(self.charset)
        if encoding is not None:
            return text.encode(encoding, "backslashreplace").decode(encoding)
        if self.charset in {"utf8", "utf8mb3"}:
            return "".join(one if ord(one) < 0x10000 else f"\\U{ord(one):08x}" for one in text)
        return text
