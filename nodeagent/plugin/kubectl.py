"""kubectl as a program: its answers, its errors in one line, and its tunnels."""

import json
import os
import re
import select
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryFile
from threading import Thread
from typing import IO, Any, Final

from nodeagent.errors import InputError, UnreachableError, printable

_SECONDS: Final = 30.0
_SHOWN: Final = 300
_TUNNEL_RE: Final = re.compile(rb"Forwarding from 127\.0\.0\.1:(\d+) -> ")
_LARGEST_ANSWER: Final = 4096


@dataclass(frozen=True, slots=True)
class Kubectl:
    """kubectl, with what was said about which cluster to talk to; *program* is its name or path."""

    program: str = "kubectl"
    options: Sequence[str] = ()

    def get(self, *words: str) -> Any:  # noqa: ANN401  # it is JSON
        """Return what ``kubectl get WORDS`` finds.

        Raises:
            UnreachableError: the cluster does not answer, or refuses; kubectl's own words.
            InputError: there is no such thing, or no kubectl.
        """
        try:
            return json.loads(self.read("get", *words, "--output=json"))
        except ValueError:
            raise UnreachableError("kubectl get: its answer is no JSON: is it kubectl?") from None

    def read(self, *words: str, seconds: float = _SECONDS) -> bytes:
        """Return what kubectl prints for *words*; raises as :meth:`get` does."""
        command = [self.program, *self.options, f"--request-timeout={seconds:.0f}s", *words]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=2 * seconds, check=False
            )
        except subprocess.TimeoutExpired:
            raise UnreachableError(f"kubectl {words[0]}: no answer in {2 * seconds:.0f} s") from None
        except OSError as error:
            raise self._missing(error) from None
        if done.returncode:
            raise _refusal(words[0], done.stderr)
        return done.stdout

    @contextmanager
    def tunnel(self, namespace: str, pod: str, port: int) -> Iterator[str]:
        """Yield HOST:PORT on this machine, which leads to *port* of the pod's own loopback address.

        Raises:
            UnreachableError: there is no way there; kubectl's own words.
        """
        words = ("port-forward", f"--namespace={namespace}", f"pod/{pod}", "--address=127.0.0.1", f":{port}")
        with TemporaryFile() as complaints:
            try:
                process = subprocess.Popen(
                    [self.program, *self.options, *words],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=complaints,
                )
            except OSError as error:
                raise self._missing(error) from None
            assert process.stdout is not None  # noqa: S101  # it was asked for
            with process.stdout:
                try:
                    port = _opened(process.stdout, complaints)
                    drain = Thread(target=_discard, args=(process.stdout,))  # kubectl waits where its pipe is full
                    drain.start()
                    try:
                        yield f"127.0.0.1:{port}"
                    finally:
                        process.terminate()
                        drain.join()
                finally:
                    process.terminate()
                    process.wait()

    def _missing(self, error: OSError) -> InputError:
        why = error.strerror or error
        return InputError(f"{printable(self.program)}: {why}: install kubectl, or give its path (--kubectl)")


def _opened(output: IO[bytes], complaints: IO[bytes]) -> int:
    """Return the port that kubectl has opened."""
    said, deadline = b"", time.monotonic() + _SECONDS
    while not (found := _TUNNEL_RE.search(said)):
        left = deadline - time.monotonic()
        ready = select.select([output], [], [], max(0.0, left))[0]
        more = os.read(output.fileno(), _LARGEST_ANSWER) if ready else b""
        if not more:
            complaints.seek(0)
            raise _refusal("port-forward", complaints.read() or b"no answer")
        said += more
    return int(found[1])


def _discard(stream: IO[bytes]) -> None:
    """Read what nobody wants: a line for each connection."""
    while os.read(stream.fileno(), _LARGEST_ANSWER):
        pass


def _refusal(word: str, complaints: bytes) -> UnreachableError | InputError:
    lines = [line for line in complaints.decode(errors="replace").splitlines() if line.strip()]
    why = printable(lines[-1].removeprefix("error: ").removeprefix("Error from server "), _SHOWN) if lines else "failed"
    error = InputError if "(NotFound)" in why else UnreachableError
    return error(f"kubectl {word}: {why}")
