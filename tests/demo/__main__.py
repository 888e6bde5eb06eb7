"""Both acts, one after the other; 1 if anything was not as expected.  Nothing is left behind, also after Ctrl-C."""

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from nodeagent.cli.output import paint
from tests.demo import __doc__ as story
from tests.demo import intent, truth
from tests.demo.kept import page_place
from tests.demo.stage import say
from tests.lab import Topology
from tests.lab.mounts import use_private_mounts


def main() -> int:
    """Run the demo; return 0 if everything happened as expected."""
    parser = argparse.ArgumentParser(prog="make demo", description=story)
    parser.add_argument("--backend", default="auto", choices=["auto", "nft", "legacy"])
    parser.add_argument("--keep", action="store_true", help="leave agent, pod and page running until Ctrl-C")
    arguments = parser.parse_args()
    backend, place = arguments.backend, page_place()
    until = "until Ctrl-C" if arguments.keep else "while that lasts; with KEEP=1, until Ctrl-C"
    say(f"The web page: http://{place}/ from the second act on, {until}.")
    try:
        use_private_mounts()
        with tempfile.TemporaryDirectory() as folder:
            with Topology() as lab, ExitStack() as opened:
                rows = intent.play(lab, opened, Path(folder), backend)
            rows += truth.play(Path(folder), backend, place, stay=arguments.keep)
    except KeyboardInterrupt:
        print("\ninterrupted: everything was removed", file=sys.stderr)
        return 130
    wrong = sum(expected != happened for _, _, expected, happened, _ in rows)
    print(paint(f"\n{len(rows) - wrong} of {len(rows)} as expected.", "bad" if wrong else "good"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
