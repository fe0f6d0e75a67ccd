"""Parts of Snappy-compressed data that can be decompressed on their own.

Snappy's compressors work on blocks of 64 KB that do not refer to each other (google/snappy, ``format_description.txt``
and ``snappy.cc``). The format does not promise it, so it is checked while the blocks are found.
"""

from __future__ import annotations

BLOCK = 1 << 16
"""Decompressed bytes of a block; the last one may be shorter."""


def find_blocks(data: bytes, size: int) -> list[int] | None:
    """Where each block begins in ``data`` (which holds ``size`` bytes once decompressed), and where the last one ends.

    None when a block refers to an earlier one. Raises ValueError or IndexError when ``data`` is not whole.
    """
    position, shift, said = 0, 0, 0
    while True:
        byte = data[position]
        said |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if not byte & 0x80:
            break
    if said != size:
        raise ValueError(f"Snappy data of {said} bytes, expected {size}")
    starts, done, begin, end = [position], 0, 0, len(data)
    while position < end:
        tag = data[position]
        kind, length = tag & 3, (tag >> 2) + 1
        if kind == 0:
            if length > 60:
                extra = length - 60
                length = int.from_bytes(data[position + 1 : position + 1 + extra], "little") + 1
                position += extra
            position += 1 + length
        else:
            if kind == 1:
                back, length = (tag >> 5 << 8) | data[position + 1], ((tag >> 2) & 7) + 4
                position += 2
            else:
                width = 2 if kind == 2 else 4
                back = int.from_bytes(data[position + 1 : position + 1 + width], "little")
                position += 1 + width
            if back > done - begin:
                return None
        done += length
        if done - begin > BLOCK:
            return None
        if done - begin == BLOCK:
            starts.append(position)
            begin = done
    if done != size or position != end:
        raise ValueError("Snappy data that is cut off")
    return starts if begin == done else [*starts, position]


def with_size(blocks: bytes, size: int) -> bytes:
    """Stored blocks as Snappy data of their own, of ``size`` bytes once decompressed."""
    head = bytearray()
    rest = size
    while rest >= 0x80:
        head.append(rest & 0x7F | 0x80)
        rest >>= 7
    head.append(rest)
    return bytes(head) + blocks
