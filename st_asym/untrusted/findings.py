"""What is wrong with a folder, all of it at once."""

from __future__ import annotations

from collections.abc import Sequence


class VerificationError(ValueError):
    """A saved model, or heads alone, that must not be used.

    Attributes:
        findings: What is wrong, where, and what to do, a sentence or two each.
    """

    def __init__(self, path: object, findings: Sequence[str]) -> None:
        self.findings = tuple(findings)
        count = "1 finding" if len(findings) == 1 else f"{len(findings)} findings"
        super().__init__(f"{path} did not pass verification ({count}):\n" + "\n".join(f"- {one}" for one in findings))


class Findings:
    """Collects what is wrong; beyond some, counts alone."""

    _MOST = 50

    def __init__(self) -> None:
        self._sentences: dict[str, None] = {}
        self._more = 0

    def add(self, where: str, what: str) -> None:
        """Note what is wrong with a file of the folder, in words that may come from outside."""
        sentence = f"{shown(where)}: {what}"
        if sentence in self._sentences:
            return
        if len(self._sentences) < self._MOST:
            self._sentences[sentence] = None
        else:
            self._more += 1

    @property
    def sentences(self) -> list[str]:
        """What was found."""
        return [*self._sentences, *([f"and {self._more} more."] if self._more else [])]

    def check(self, path: object) -> None:
        """Raise what was found, if anything was."""
        if self._sentences:
            raise VerificationError(path, self.sentences)


def shown(value: object, most: int = 120) -> str:
    """A name or value from a file on one line, without control characters, cut where it is long."""
    text = value if isinstance(value, str) else repr(value)
    plain = "".join(one if one.isprintable() else "?" for one in text[: most + 1])
    return plain if len(plain) <= most else plain[:most] + "..."
