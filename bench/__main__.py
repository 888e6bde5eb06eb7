"""``python -m bench [--quick]``."""

import argparse
import os
import platform

from bench import agent, counting, ledger, nri, page, programming, ranges
from tests.lab.mounts import use_private_mounts


def main() -> None:
    """Measure everything, print tables in Markdown's neighbourhood."""
    parser = argparse.ArgumentParser(prog="make bench", description="Measure what docs/performance.md shows.")
    parser.add_argument("--quick", action="store_true", help="few samples: a smoke test, not a measurement")
    quick = parser.parse_args().quick
    use_private_mounts()
    print(f"Linux {platform.release()}, Python {platform.python_version()}, {os.cpu_count()} CPUs")
    counting.run(rounds=4 if quick else 40)
    ledger.run(rounds=5 if quick else 60)
    programming.run(rounds=10 if quick else 200, pods=20 if quick else 250)
    ranges.run(rounds=3 if quick else 40)
    nri.run(pods=100 if quick else 5000)
    agent.run(pods=20 if quick else 250)
    page.run(loads=2 if quick else 40)


if __name__ == "__main__":
    main()
