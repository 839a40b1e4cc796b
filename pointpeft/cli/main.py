"""The console script: finds the command, runs it, turns failures into a message and an exit code."""

import difflib
import io
import math
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import FrameType
from typing import Annotated, Any, NoReturn, Union

from pointpeft.cli.interrupts import answered

# Nothing heavy is imported up here: the first second, too, ends in our message where Ctrl-C comes.

# Command -> (module, its dataclass). The module's `run(command) -> int` does the work and imports what is heavy.
COMMANDS = {
    "finetune": ("pointpeft.cli.commands.finetune", "FinetuneConfig"),
    "compare": ("pointpeft.cli.commands.compare", "CompareConfig"),
    "few-shot": ("pointpeft.cli.commands.few_shot", "FewShotConfig"),
    "evaluate": ("pointpeft.cli.commands.evaluate", "EvaluateConfig"),
    "predict": ("pointpeft.cli.commands.predict", "Predict"),
    "pretrain": ("pointpeft.cli.commands.pretrain", "PretrainConfig"),
    "show": ("pointpeft.cli.commands.show", "Show"),
    "serve": ("pointpeft.cli.commands.serve", "Serve"),
    "export": ("pointpeft.cli.commands.export", "Export"),
    "convert": ("pointpeft.cli.commands.convert", "Convert"),
    "memory-bank": ("pointpeft.cli.commands.memory_bank", "MemoryBankConfig"),
    "methods": ("pointpeft.cli.commands.methods", "Methods"),
    "presets": ("pointpeft.cli.commands.presets", "Presets"),
    "data": ("pointpeft.cli.commands.data", "Data"),
    "info": ("pointpeft.cli.commands.info", "Info"),
}
OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

STOPPED = "pointpeft: stopped; a run goes on from its last epoch with --resume RUN"

DESCRIPTION = """\
Adapt a pre-trained point-cloud transformer by training a small part of it.

First steps:
  pointpeft finetune                     embedded furniture data, minutes on a CPU
  pointpeft data check scans/            is my folder readable?
  pointpeft finetune scans/              one sub-folder of clouds per class
  pointpeft finetune DATA --preset dapt/scanobjectnn_hardest --checkpoint pretrain.pth
  pointpeft compare scans/ --methods linear dapt full
  pointpeft few-shot scans/ --ways 5 --shots 10 --methods linear dapt
  pointpeft predict RUN cloud.ply        classify with the adapter of a run folder

  pointpeft COMMAND --help               every option, with its default

--debug anywhere shows the traceback of an error; --version prints the version.
Exit codes: 0 done, 1 wrong input or option, 2 wrong command line, 130 stopped by Ctrl-C.
"""


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    _write_any_name()
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not debug:
        warnings.formatwarning = lambda message, *_, **__: f"pointpeft: warning: {message}\n"
    if "--version" in arguments:
        from pointpeft import __version__

        print(f"pointpeft {__version__}")
        return OK
    try:
        with _imports_end_at_once():
            command, run = _parse(arguments)
            return run(command)
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            print(f"pointpeft: {_message(error)}", file=sys.stderr)
        return FAILED


def _write_any_name() -> None:
    """Writes characters that the encoding of stdout or stderr lacks as escapes, so that no file name ends a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
            # A file whose descriptor now leads to a pipe cannot say where it stands, and keeps its way with such signs.
            with suppress(OSError):
                stream.reconfigure(errors="backslashreplace")


@contextmanager
def _imports_end_at_once() -> Iterator[None]:
    """Within it Ctrl-C during an import ends the process: an exception would have to pass through libraries that are
    half loaded, and some abort. So it does in an operation that does not return within a second: every file is written
    so that an end at any moment harms none.
    """
    last_answer = -math.inf

    def end() -> NoReturn:
        os.write(2, f"{STOPPED}\n".encode())
        os._exit(INTERRUPTED)

    def interrupted(number: int, frame: FrameType | None) -> NoReturn:
        nonlocal last_answer
        last_answer = time.monotonic()
        while frame is not None:
            if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
                end()
            frame = frame.f_back
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # the caller has its own
        yield
        return
    try:
        signal.signal(signal.SIGINT, interrupted)
    except ValueError:  # not the main thread, which alone is interrupted
        yield
        return
    try:
        with answered(interrupted, lambda: last_answer, end):
            yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _message(error: Exception) -> str:
    """The message of an error; one that is not about the input is marked as internal."""
    if isinstance(error, (ValueError, OSError, ImportError, MemoryError)):
        return f"error: {error}"
    return f"internal error: {type(error).__name__}: {error} (--debug shows where)"


def _parse(arguments: list[str]) -> tuple[Any, Any]:
    """The command's dataclass, filled, and its `run`. A wrong command line ends the process with code 2."""
    import tyro

    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"commands: {', '.join(COMMANDS)}"
        print(f"pointpeft: error: unknown command {arguments[0]!r}; {hint}", file=sys.stderr)
        raise SystemExit(USAGE)
    # Only the module of the given command is imported; for the overview all are, and they are light.
    named = next((argument for argument in arguments if not argument.startswith("-")), None)
    chosen = {named: COMMANDS[named]} if named in COMMANDS else COMMANDS
    modules = {name: import_module(module) for name, (module, _) in chosen.items()}
    classes = {name: getattr(modules[name], cls) for name, (_, cls) in chosen.items()}
    if named in COMMANDS and arguments[0] == named:

        def parse(**default: Any) -> Any:
            config = (tyro.conf.OmitArgPrefixes,)
            return tyro.cli(classes[named], args=arguments[1:], prog=f"pointpeft {named}", config=config, **default)

        command = parse()
        if hasattr(modules[named], "revise"):  # an option of the command may stand for defaults of others
            command = modules[named].revise(command, parse)
        return command, modules[named].run
    subcommands = tuple(
        Annotated[cls, tyro.conf.subcommand(name, description=(cls.__doc__ or "").split("\n")[0])]
        for name, cls in classes.items()
    )
    command = tyro.cli(
        Union[subcommands],  # noqa: UP007  # pyrefly: ignore[not-a-type]
        args=arguments or ["--help"],
        prog="pointpeft",
        description=DESCRIPTION,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )
    return command, next(modules[name].run for name, cls in classes.items() if type(command) is cls)
