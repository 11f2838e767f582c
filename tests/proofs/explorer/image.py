"""What a read returns, put together only where it is looked at.

Two results that agree in all that a procedure looked at, before it asked for the next step, let it go on
in the same way. An ``Image`` notes that. Its own buffer is empty (that of a probe holds the first sector,
which then counts as seen), so whoever reads it in another way than by slices fails loudly, and is given plain
bytes; what a procedure keeps of it counts as seen whole (``remembered``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


class Image(bytes):
    """Sectors of a place; ``contents`` are those that change, by their sector number in the place."""

    contents: dict[int, bytes]
    base: memoryview
    sector_size: int
    seen: set[int]

    @classmethod
    def of(cls, base: memoryview, sector_size: int, contents: dict[int, bytes], *, head: bool) -> Image:
        image = cls(contents.get(0, bytes(base[:sector_size])) if head else b"")
        image.base, image.sector_size, image.contents = base, sector_size, contents
        image.seen = {0} & contents.keys() if head else set()
        return image

    def whole(self) -> bytes:
        """All of it, as plain bytes."""
        self.seen.update(self.contents)
        size, done, pieces = self.sector_size, 0, []
        for sector in sorted(self.contents):
            pieces += [self.base[done : sector * size], self.contents[sector]]
            done = (sector + 1) * size
        return b"".join([*pieces, self.base[done:]])

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, key: Any) -> Any:
        if type(key) is slice and key.step is None:
            start, stop, _ = key.indices(len(self.base))
            sector, within = divmod(start, self.sector_size)
            if within + stop - start <= self.sector_size:
                content = self.contents.get(sector)
                if content is None:
                    return bytes(self.base[start:stop])
                self.seen.add(sector)
                return content[within : within + stop - start]
        return self.whole()[key]

    def __iter__(self) -> Iterator[int]:
        return iter(self.whole())

    def __eq__(self, other: object) -> bool:
        return self.whole() == other

    def __hash__(self) -> int:
        return hash(self.whole())

    def __contains__(self, item: Any) -> bool:
        return item in self.whole()

    def __bytes__(self) -> bytes:
        return self.whole()


def _through(name: str) -> Callable[..., Any]:
    def method(self: Image, *arguments: Any, **named: Any) -> Any:
        return getattr(self.whole(), name)(*arguments, **named)

    return method


for _name in ("find", "index", "count", "startswith", "endswith", "split", "strip", "hex", "ljust", "__add__",
              "__ne__", "__lt__", "__le__", "__gt__", "__ge__"):  # fmt: skip
    setattr(Image, _name, _through(_name))
