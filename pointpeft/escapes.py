"""Names of files and classes inside other formats: a name stays a name, and is never a formula, a tag or a command."""

import csv
import html
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# A cell that begins so is a formula to spreadsheets; some also take the full-width forms.
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
_LATEX = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}
# Markdown reads these anywhere in a line. An underscore inside a word means nothing, and names are full of them.
_MARKDOWN = {sign: f"\\{sign}" for sign in "\\`*[]|"}


def csv_cell(value: Any) -> Any:
    """Text that a spreadsheet shows and does not calculate, by an apostrophe before it; numbers are as they are."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def csv_text(head: Sequence[str], rows: Iterable[Mapping[str, Any] | Sequence[Any]]) -> str:
    """A CSV file. Rows are sequences, or mappings by the names in `head`, of which an entry may be missing."""
    lines = [head, *([row.get(name, "") for name in head] if isinstance(row, Mapping) else row for row in rows)]
    return "".join(map(_csv_line, lines))


def _csv_line(cells: Iterable[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(map(csv_cell, cells))  # with another end, a lone \r is not quoted
    return text.getvalue().removesuffix("\r\n") + "\n"


def latex_text(value: Any) -> str:
    """Text for LaTeX, in one line, printed as it is."""
    return "".join(_LATEX.get(sign, sign) for sign in one_line(value))


def markdown_text(value: Any) -> str:
    """Text for a paragraph or a table's cell of Markdown, in one line: no tag, link, picture or further column."""
    escaped = "".join(_MARKDOWN.get(sign, sign) for sign in one_line(value))
    return html.escape(escaped, quote=False)


def one_line(value: Any) -> str:
    """Text without line breaks."""
    return " ".join(str(value).splitlines())


def figure_text(value: Any) -> str:
    """Text for matplotlib, printed as it is: dollar signs begin no formula, bytes that are no text are written out."""
    return str(value).encode(errors="backslashreplace").decode().replace("$", r"\$")


def json_in_script(value: Any) -> str:
    """JSON for a script element of HTML: nothing in it can end the element or begin a comment."""
    text = json.dumps(value)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def fill(template: str, values: Mapping[str, str]) -> str:
    """Puts values at the places `@NAME@` of a template, all in one pass: a value that holds `@NAME@` stays as it is.

    Raises:
        KeyError: The template has a place without a value.
    """
    return re.sub(r"@([A-Z]+)@", lambda place: values[place[1]], template)
