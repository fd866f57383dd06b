"""Flatbuffers in which what is equal stands once: the format lets several owners point at one string or table."""

from __future__ import annotations

from functools import cache
from typing import Any

__all__ = ["pack"]


def pack(root: Any, identifier: bytes) -> bytes:
    """The flatbuffer of an object of flatc's object API, with four bytes that tell its kind."""
    builder = _interning_builder()(1 << 16)
    builder.Finish(root.Pack(builder), identifier)
    return bytes(builder.Output())


@cache
def _interning_builder() -> Any:
    import flatbuffers

    class Interning(flatbuffers.Builder):  # type: ignore[misc]
        """A builder that takes back what it has written before.

        It writes from the end to the beginning, and an offset is counted from the end: all that an object points
        to is complete when the object is. So two are equal where their bytes are, and their pointers' targets.
        """

        def __init__(self, size: int) -> None:
            super().__init__(size)
            self._known: dict[tuple[Any, ...], int] = {}
            self._begun = 0
            self._vector: tuple[int, int] | None = None  # where its content ends, and its alignment
            self._pointers: list[tuple[int, int]] = []

        def CreateString(self, s: Any, encoding: str = "utf-8", errors: str = "strict") -> int:  # noqa: N802
            content = s.encode(encoding, errors) if isinstance(s, str) else bytes(s)
            if ("string", content) not in self._known:
                self._known["string", content] = int(super().CreateString(content))
            return self._known["string", content]

        def StartVector(self, elemSize: int, numElems: int, alignment: int) -> int:  # noqa: N802, N803
            self._begin()
            end = int(super().StartVector(elemSize, numElems, alignment))
            self._vector = end, alignment
            return end

        def EndVector(self, numElems: int | None = None) -> int:  # noqa: N802, N803
            made, vector = int(super().EndVector(numElems)), self._vector
            self._vector = None
            return made if vector is None else self._once(made, vector[0], ("vector", vector[1]))

        def StartObject(self, numfields: int) -> None:  # noqa: N802
            self._begin()
            super().StartObject(numfields)

        def EndObject(self) -> int:  # noqa: N802
            made = int(super().EndObject())
            at = len(self.Bytes) - made
            fields = made + int.from_bytes(self.Bytes[at : at + 4], "little", signed=True)
            # The first word leads to that list from here.
            return self._once(made, self._begun, ("table", fields), skip=4)

        def PrependUOffsetTRelative(self, off: int) -> None:  # noqa: N802
            super().PrependUOffsetTRelative(off)
            self._pointers.append((int(self.Offset()), off))

        def _begin(self) -> None:
            self._begun, self._pointers = int(self.Offset()), []

        def _once(self, made: int, end: int, kind: tuple[Any, ...], skip: int = 0) -> int:
            """The place of an equal one where there is one, and this one is gone; else its own."""
            base = len(self.Bytes) - made
            content = bytearray(self.Bytes[base + skip : len(self.Bytes) - end])
            for place, _ in self._pointers:
                at = made - place - skip
                content[at : at + 4] = bytes(4)
            targets = tuple((made - place, target) for place, target in self._pointers)
            key = (*kind, bytes(content), targets)
            if key in self._known:
                self.head = len(self.Bytes) - self._begun
                return self._known[key]
            self._known[key] = made
            return made

    return Interning
