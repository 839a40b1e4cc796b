"""Turns CUDA sources into C++ for the emulator by changes of words; every line stays where it is."""

import re
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CSRC = ROOT / "csrc"

# Choices of the host code that the tests make themselves, so that small cases reach every path.
CHOICES = (
    (r"= plan_samples<\w+>\(", ""),  # see translate_plans
    (r"constexpr int64_t kMostBlocks = [^;]+;", "static const int64_t& kMostBlocks = emulation::choices.max_blocks;"),
    (r"\(int64_t\{1\} << 24\)", "(emulation::choices.product_entries)"),
)


def sources() -> dict[str, str]:
    """The text of each file that a kernel may include, by its path from the root, and of the kernels themselves."""
    paths = [path for pattern in ("*.cu", "*.cuh", "*.h") for path in CSRC.rglob(pattern)]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(paths)}


def require_choices(texts: Mapping[str, str]) -> None:
    """Each choice that the tests make stands once in the sources: else a path would silently go untested."""
    for pattern, _ in CHOICES:
        count = sum(len(re.findall(pattern, text)) for text in texts.values())
        if count != 1:
            raise ValueError(f"{pattern} stands {count} times in csrc, and must once: adapt CHOICES in {__file__}")


def closing(text: str, opening: int) -> int:
    """The place of the bracket that closes the one at `opening`."""
    pair = {"(": ")", "{": "}"}[text[opening]]
    depth = 0
    for place in range(opening, len(text)):
        depth += (text[place] == text[opening]) - (text[place] == pair)
        if depth == 0:
            return place
    raise ValueError(f"nothing closes {text[opening : opening + 60]!r}")


def start_of_name(text: str, end: int) -> int:
    """Where the name begins that ends at `end`, with its template arguments."""
    start = end
    if text[start - 1] == ">":
        depth = 0
        while True:
            start -= 1
            depth += (text[start] == ">") - (text[start] == "<")
            if depth == 0:
                break
    while text[start - 1].isalnum() or text[start - 1] == "_":
        start -= 1
    return start


def translate_launches(text: str) -> str:
    """`kernel<<<grid, block, shared, stream>>>(arguments)` becomes a call of emulation::launch."""
    while (at := text.find("<<<")) >= 0:
        start, end = start_of_name(text, at), text.index(">>>", at)
        last = closing(text, end + 3)
        kernel, configuration, arguments = text[start:at], text[at + 3 : end], text[end + 4 : last]
        thread = f"[](auto... each) {{ {kernel}(each...); }}"
        call = f"emulation::launch(emulation::configuration({configuration}), {thread}, {arguments})"
        text = text[:start] + call + text[last + 1 :]
    return text


def translate_kernels(text: str) -> str:
    """Every kernel begins with emulation::enter_kernel, which is told its __launch_bounds__."""
    done = 0
    while (at := text.find("__global__", done)) >= 0:
        opening, bounds = text.index("(", at), ""
        if text[:opening].endswith("__launch_bounds__"):
            bounds = ", " + text[opening + 1 : closing(text, opening)]
            opening = text.index("(", closing(text, opening))
        body = text.index("{", closing(text, opening))
        text = f"{text[: body + 1]} emulation::enter_kernel(__PRETTY_FUNCTION__{bounds});{text[body + 1 :]}"
        done = body
    return text


def translate_shared_arrays(text: str) -> str:
    """`__shared__ T name[n];` becomes a reference to memory of the block that runs."""
    if re.search(r"extern\s+__shared__", text):
        raise ValueError("dynamic shared memory is not emulated")
    return re.sub(
        r"__shared__\s+([^;\[]+?)\s+(\w+)\s*((?:\[[^\]]*\])*)\s*;",
        r"static const char \2_tag = 0; typedef \1 \2_type\3; auto& \2 = *static_cast<\2_type*>("
        r"emulation::shared_array(&\2_tag, sizeof(\2_type), alignof(\2_type), {__FILE__, __LINE__}));",
        text,
    )


def translate_plans(text: str) -> str:
    """The tests may choose the plan of a sampling."""
    found = re.search(r"= (plan_samples<\w+>\()", text)
    if found is None:
        return text
    last = closing(text, found.end() - 1)
    return f"{text[: found.start(1)]}emulation::choose({text[found.start(1) : last + 1]}){text[last + 1 :]}"


def translate(name: str, text: str, architecture: int) -> str:
    """The C++ of one file, for kernels as compiled for `architecture`, such as 90."""
    text = translate_shared_arrays(translate_kernels(translate_launches(text)))
    for pattern, replacement in CHOICES[1:]:
        text = re.sub(pattern, replacement, text)
    text = translate_plans(text)
    text = text.replace("__CUDA_ARCH__", f"{architecture}0")
    text = re.sub(r"STABLE_TORCH_LIBRARY_IMPL\(pointpeft, CUDA, (\w+)\)", r"EMULATED_LIBRARY_IMPL(\1)", text)
    return f'#line 1 "{name}"\n{text}'
