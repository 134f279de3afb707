"""Instructions as numbers: a stream of kind "text" is UTF-8 bytes, uint8 `(length,)`, zeros behind the end.

Every place that moves streams (worlds, stores, windows, agents) moves arrays of one shape, and so moves text: what the bytes
mean is settled for ever, where token numbers would belong to one tokeniser. Encoders make of them what they need.
"""

from __future__ import annotations

from typing import Any

from polyarm.spec import UserError


def text_row(text: str, length: int) -> Any:
    """uint8 [length]. Raises UserError for a text that does not fit, or that holds the byte 0."""
    import numpy as np

    data = text.encode()
    if len(data) > length or 0 in data:
        raise UserError(
            f"the text {text!r} has {len(data)} bytes for a stream of {length}: shorten it, or make the stream longer, and "
            "leave out the character 0"
        )
    return np.frombuffer(data.ljust(length, b"\0"), np.uint8)


def row_text(row: Any) -> str:
    """The text of one row, uint8 [length], numpy or torch. Raises UserError for bytes that are no UTF-8."""
    data = bytes(row.tolist()).rstrip(b"\0")
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        raise UserError(f"the text {data!r} is no UTF-8: write texts with polyarm.text.text_row") from e
