"""Coverage-guided search for bytes on the runtime's socket that are neither understood nor clearly refused.

    make fuzz                                                    for a minute, after the policy parser
    python tests/fuzz/fuzz_nri.py -max_total_time=3600 CORPUS    for an hour, what it learns kept in CORPUS
    python tests/fuzz/fuzz_nri.py FILE                           one input again

The first byte chooses what the rest is: the socket's bytes, cut in portions of that size, or the payload of one method.
An input counts as found if anything but a :class:`ProtocolError` comes out, if an error is not one line of bounded
length, or if a pod comes out whose names could leave the place where they are looked up.  Recordings of real runtimes
are the seeds; they are written to the corpus folder when it is empty.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(include=["nodeagent"]):
    from nodeagent.errors import NodeagentError
    from nodeagent.nri import Container, ProtocolError, Sandbox, messages
    from nodeagent.nri.calls import Asked, ContainerEvent, Inventory, Refused, SandboxEvent, parse, read_call
    from nodeagent.nri.frames import Decoder, Frame, Kind, Service
    from nodeagent.policy import resolve

METHODS = ("Configure", "Synchronize", "StateChange", "RunPodSandbox", "StartContainer")
RECORDINGS = Path(__file__).resolve().parents[1] / "nri" / "recordings"
LONGEST_MESSAGE = 1000


def fuzz(data: bytes) -> None:
    """Give *data* to what its first byte chooses."""
    if not data:
        return
    choice, rest = data[0], data[1:]
    try:
        if choice < len(METHODS):
            check(read_call(METHODS[choice], rest))
        else:
            fuzz_socket(rest, choice)
    except ProtocolError as error:
        check_message(error)


def fuzz_socket(data: bytes, portion: int) -> None:
    """Read *data* as a connection does, *portion* bytes at a time."""
    decoder = Decoder()
    for start in range(0, len(data), portion):
        for frame in decoder.feed(data[start : start + portion]):
            fuzz_frame(frame)


def fuzz_frame(frame: Frame) -> None:
    """Read *frame* as a session does."""
    if frame.service is Service.RUNTIME or frame.kind is Kind.RESPONSE:
        parse(messages.Response, frame.message)
    else:
        request = parse(messages.Request, frame.message)
        check(read_call(request.method, request.payload))


def check(asked: Asked) -> None:
    """Raise if something in *asked* is not safe to use."""
    match asked:
        case Inventory():
            items: tuple[Sandbox | Container, ...] = (*asked.sandboxes, *asked.containers)
            for item in items:
                check_item(item)
            for error in asked.refused:
                check_message(error)
        case ContainerEvent():
            check_item(asked.sandbox)
            check_item(asked.container)
        case SandboxEvent():
            check_item(asked.sandbox)
            resolve(asked.sandbox.annotations)
        case Refused():
            check_message(asked.error)


def check_item(item: Sandbox | Container) -> None:
    """Raise if a name of *item* is more than a name, or a path leads up."""
    names = (item.uid, item.namespace) if isinstance(item, Sandbox) else (item.pod_sandbox_id,)
    for name in (item.id, item.name, *names):
        if not (name.isascii() and name.isprintable() and name[:1].isalnum() and "/" not in name):
            raise AssertionError(f"not a name: {name!r}")
    paths = (item.cgroup_parent, item.netns or "/") if isinstance(item, Sandbox) else ()
    for path in (item.cgroups_path, *paths):
        if not (path.isascii() and path.isprintable()) or ".." in path.split("/"):
            raise AssertionError(f"not a path: {path!r}")


def check_message(error: NodeagentError) -> None:
    """Raise if the text of *error* could break a log, a terminal or a line."""
    text = str(error)
    if not (text.isascii() and text.isprintable() and len(text) <= LONGEST_MESSAGE):
        raise AssertionError(f"not a clear message: {text[:LONGEST_MESSAGE]!r}")


def seeds() -> Iterator[bytes]:
    """Yield what real runtimes said, whole and call by call."""
    for recording in sorted(RECORDINGS.iterdir()):
        data = recording.read_bytes()
        yield b"\xff" + data
        for frame in Decoder().feed(data):
            if frame.service is Service.PLUGIN:
                request = messages.Request.FromString(frame.message)
                if request.method in METHODS:
                    yield bytes([METHODS.index(request.method)]) + request.payload


def main() -> None:
    """Seed the corpus, if there is one and it is empty, and search."""
    for folder in (Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")):
        if folder.is_dir() and not any(folder.iterdir()):
            for number, seed in enumerate(seeds()):
                (folder / f"seed-{number:03}").write_bytes(seed)
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
