"""The command line: thin; it reads, asks, prints, and maps errors to exit codes."""

from collections.abc import Callable, Sequence
from importlib import import_module

import structlog

from nodeagent.cli.arguments import build_parser
from nodeagent.cli.output import open_closed_streams, print_error, written_out
from nodeagent.errors import NodeagentError
from nodeagent.log import Logging, configure_logging

_MODULES = {
    "policy": "reading",
    "render": "reading",
    "explain": "reading",
    "apply": "programming",
    "diff": "programming",
    "clear": "programming",
    "doctor": "programming",
    "run": "run",
    "programmer": "programmer",
    "flows": "flows",
    "top": "top",
    "status": "status",
    "support": "support",
    "uninstall": "uninstall",
    "wait": "wait",
}

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    return guard(lambda: _run(argv))


def guard(run: Callable[[], int]) -> int:
    """Return the exit code of *run*; whatever it raises is said in one line, and has a code of its own."""
    open_closed_streams()
    configure_logging(Logging())
    try:
        with written_out():
            return run()
    except NodeagentError as error:
        print_error(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        print_error("interrupted")
        return _INTERRUPTED
    except Exception as error:  # noqa: BLE001  # whatever it is, it must not look like "differs"
        structlog.get_logger().debug("internal error", exc_info=True)
        print_error(f"internal error: {error!r}: please report this; --log-level debug tells more")
        return NodeagentError.exit_code


def _run(argv: Sequence[str] | None) -> int:
    arguments = build_parser().parse_args(argv)
    configure_logging(Logging(arguments.log_level, arguments.log_format))
    module = import_module(f"nodeagent.cli.{_MODULES[arguments.command]}")
    run: Callable[..., int] = getattr(module, f"run_{arguments.command}")
    return run(arguments)
