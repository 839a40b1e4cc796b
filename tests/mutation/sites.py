"""Where the operations' code can be changed by one small fault.

Comparisons lose or gain equality, + and - change places, * becomes +, whole numbers grow by one, minima become maxima,
`and` becomes `or`, a `not` is dropped. Python is read as a syntax tree; C++ as text without comments, strings and the
lines of the preprocessor, in which clang-format has put spaces around every operator and none around template brackets.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SWAPS = {"<": "<=", ">": ">=", "==": "!=", "+": "-", "+=": "-=", "and": "or", "&&": "||", "min": "max"}
SWAPS |= {"minimum": "maximum", "amin": "amax"}
SWAPS |= {new: old for old, new in SWAPS.items()} | {"*": "+", "*=": "+="}

CPP_OPERATOR = r"(?<= )(?:[<>]=?|[=!]=|[-+*]=?|&&|\|\|)(?= |$)"
CPP_SITE = re.compile(
    rf"(?P<operator>{CPP_OPERATOR})|(?<![\w.'])(?P<number>\d+)(?![\w.'])"
    r"|(?<=std::)(?P<name>min|max)(?=[<(])|(?<=_)(?P<lanes>min|max)(?=_)|(?P<negation>!)(?=[A-Za-z_(])"
)
CPP_TEXT = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])'", re.DOTALL)
CPP_DECLARES = re.compile(r"^\s*(#|static_assert|template|using|m\.(def|impl)|STABLE_TORCH|namespace|.*\\$)")


@dataclass(frozen=True)
class Site:
    """A place in a file, and what is put there."""

    file: str
    """Relative to the root of the repository."""
    line: int
    """From 1 on."""
    column: int
    """In characters, from 0 on."""
    old: str
    new: str
    text: str
    """The line, without its end."""

    @property
    def original(self) -> str:
        return self.text.strip()

    @property
    def mutated(self) -> str:
        return self._changed(self.text).strip()

    def put(self, source: str) -> str:
        """The file's content with the fault in it."""
        lines = source.splitlines(keepends=True)
        lines[self.line - 1] = self._changed(lines[self.line - 1])
        return "".join(lines)

    def _changed(self, line: str) -> str:
        end = self.column + len(self.old)
        if line[self.column : end] != self.old:
            raise ValueError(f"{self.file}:{self.line} has no {self.old!r} at column {self.column}: {line!r}")
        return line[: self.column] + self.new + line[end:]


def python_sites(file: str) -> list[Site]:
    """Every site of a Python file."""
    source = (ROOT / file).read_text(encoding="utf-8")
    lines = source.splitlines()
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))

    def site(line: int, column: int, old: str, new: str) -> Site:
        return Site(file, line, column, old, new, lines[line - 1])

    def at(line: int, offset: int) -> tuple[int, int]:
        """A position of the tree, whose columns are bytes, in characters."""
        return line, len(lines[line - 1].encode()[:offset].decode())

    def between(left: ast.expr, right: ast.expr) -> Iterator[Site]:
        """The operator between two operands, with any brackets around it."""
        start, end = at(left.end_lineno or 0, left.end_col_offset or 0), at(right.lineno, right.col_offset)
        for token in tokens:
            if start <= token.start < end and token.type in (tokenize.OP, tokenize.NAME) and token.string in SWAPS:
                yield site(*token.start, token.string, SWAPS[token.string])

    found = []
    for node in _executed(ast.parse(source)):
        if isinstance(node, ast.BinOp):
            found += between(node.left, node.right)
        elif isinstance(node, ast.AugAssign):
            found += between(node.target, node.value)
        elif isinstance(node, ast.Compare):
            for left, right in zip([node.left, *node.comparators], node.comparators, strict=False):
                found += between(left, right)
        elif isinstance(node, ast.BoolOp):
            for left, right in zip(node.values, node.values[1:], strict=False):
                found += between(left, right)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            line, column = at(node.lineno, node.col_offset)
            found.append(site(line, column, "not ", ""))
        elif isinstance(node, ast.Constant) and type(node.value) is int:
            (line, column), (_, end) = at(node.lineno, node.col_offset), at(node.lineno, node.end_col_offset or 0)
            found.append(site(line, column, lines[line - 1][column:end], str(node.value + 1)))
        elif isinstance(node, (ast.Name, ast.Attribute)):
            name = node.id if isinstance(node, ast.Name) else node.attr
            if name in SWAPS:
                line, end = at(node.end_lineno or 0, node.end_col_offset or 0)
                found.append(site(line, end - len(name), name, SWAPS[name]))
    return sorted(set(found), key=lambda one: (one.line, one.column))


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below one, without annotations, decorators, messages and what only type checkers read."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr):
                continue
            if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
                continue
            yield child
            yield from _executed(child)


def cpp_sites(file: str) -> list[Site]:
    """Every site of a C++ file."""
    source = (ROOT / file).read_text(encoding="utf-8")
    blank = CPP_TEXT.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), source)
    found = []
    for number, (line, text) in enumerate(zip(blank.splitlines(), source.splitlines(), strict=True), 1):
        if CPP_DECLARES.match(line):
            continue
        for match in CPP_SITE.finditer(line.rstrip()):
            old = match[0]
            new = str(int(old) + 1) if match["number"] else "" if match["negation"] else SWAPS[old]
            found.append(Site(file, number, match.start(), old, new, text))
    return found


def files(language: str) -> list[str]:
    """The files that are changed: `pointpeft/ops`, and what the CPU's library is compiled from."""
    if language == "python":
        return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "pointpeft/ops").glob("*.py"))
    sources = [path for path in sorted((ROOT / "csrc").glob("*.cpp")) if path.stem != "module"]
    return sorted({str(path.relative_to(ROOT)) for source in sources for path in [source, *included(source)]})


def included(path: Path) -> set[Path]:
    """The headers of csrc that a file includes, directly or through others."""
    found = set()
    for name in re.findall(r'^#include "(\w+\.h)"', path.read_text(encoding="utf-8"), re.MULTILINE):
        header = path.parent / name
        found |= {header, *included(header)}
    return found


def sites(language: str) -> list[Site]:
    """All sites, in the order of files and lines."""
    find = python_sites if language == "python" else cpp_sites
    return [site for file in files(language) for site in find(file)]
