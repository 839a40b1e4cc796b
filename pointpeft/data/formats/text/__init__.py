"""Text files of one cloud: decoding, rows, columns."""

from pointpeft.data.formats.text.reader import decode, holds_rows, read_text, split_lines

__all__ = ["decode", "holds_rows", "read_text", "split_lines"]
