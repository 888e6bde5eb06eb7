"""Coverage-guided search for a text that is neither understood nor clearly refused.

    make fuzz                                                       for a minute
    python tests/fuzz/fuzz_policy.py -max_total_time=3600 CORPUS    for an hour, what it learns kept in CORPUS
    python tests/fuzz/fuzz_policy.py FILE                           one input again

The first byte chooses what the rest is read as: annotations, a configuration or a manifest.  An input counts as found
if anything but an :class:`InputError` comes out, if an error is not one line of bounded length, or if a policy cannot
be described.  The shared cases are the seeds; they are written to the corpus folder when it is empty.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import atheris
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(include=["nodeagent", "msgspec"]):
    from nodeagent.errors import InputError
    from nodeagent.files.manifest import read_pods
    from nodeagent.model import Family
    from nodeagent.policy import Configuration, describe, read_configuration, resolve
    from nodeagent.policy.dialects import DIALECTS

KEYS = [key for dialect in DIALECTS.values() for key in (*dialect.fields, *dialect.not_ours)]
CASES = Path(__file__).resolve().parents[1] / "cases"
LONGEST_MESSAGE = 1000
GUARDED = read_configuration("guard: {widestExclude: {ipv4: 8, ipv6: 16}}\nranges: {payments-db: [10.20.0.0/16]}")


def fuzz_annotations(data: bytes) -> None:
    """Read *data* as lines, each one byte that chooses a key and the value; the rest of a line may hold anything."""
    annotations: dict[str, str] = {}
    for line in data.split(b"\0"):
        if line:
            annotations[KEYS[line[0] % len(KEYS)]] = line[1:].decode(errors="surrogateescape")
    for configuration in (Configuration(), GUARDED):
        resolution = resolve(annotations, configuration)
        for text in (*resolution.warnings, *(rejection.message for rejection in resolution.rejected)):
            check_message(text)
        if resolution.rejected and resolution.policy != configuration.policy:
            raise AssertionError("half of a refused Pod's annotations count")
        check_fixpoint(describe(resolution))


def check_fixpoint(described: dict[str, object]) -> None:
    """Raise unless what a policy says of itself is understood, and as the same."""
    for field, name in (("include_ranges", "includeOutboundIPRanges"), ("include_ports", "includeOutboundPorts")):
        texts = described[field]
        if not isinstance(texts, list):
            raise TypeError(field)
        again = resolve({f"nodeagent.io/{name}": ",".join(texts)})
        # A named range may hold more than an annotation's limits allow; that, and nothing else, is refused here.
        if describe(again)[field] != texts and not any(rejection.reason == "size" for rejection in again.rejected):
            raise AssertionError(f"{field} is not a fixpoint: {texts}")


def fuzz_configuration(data: bytes) -> None:
    """Read *data* as a configuration; if it is one, a Pod must resolve under it."""
    configuration = read_configuration(data, "fuzz.yaml")
    describe(resolve({"nodeagent.io/excludeOutboundIPRanges": "192.0.2.0/24"}, configuration))
    for family in Family:
        configuration.policy.exclude_ranges.of(family)


def fuzz_manifest(data: bytes) -> None:
    """Read *data* as Pods; what they hold must resolve."""
    for pod in read_pods(data.decode(errors="surrogateescape"), "fuzz.yaml"):
        describe(resolve(pod.annotations))


READERS = (fuzz_annotations, fuzz_configuration, fuzz_manifest)


def fuzz(data: bytes) -> None:
    """Give *data* to the reader that its first byte names."""
    if not data:
        return
    try:
        READERS[data[0] % len(READERS)](data[1:])
    except InputError as error:
        check_message(str(error))


def check_message(text: str) -> None:
    """Raise if *text* could break a log, a terminal or a line."""
    if not (text.isascii() and text.isprintable() and len(text) <= LONGEST_MESSAGE):
        raise AssertionError(f"not a clear message: {text[:LONGEST_MESSAGE]!r}")


def seeds() -> Iterator[bytes]:
    """Yield inputs from the shared cases and from the product's own samples."""
    corpus = yaml.safe_load((CASES / "annotations.yaml").read_text(encoding="utf-8"))
    names = {"include": "includeOutboundIPRanges", "exclude": "excludeOutboundIPRanges"}
    for case in (*corpus["cases"], *corpus["fields"]):
        if "value" in case:
            key = KEYS.index(f"nodeagent.io/{names.get(case['key'], case['key'])}")
            yield b"\0" + bytes([key]) + case["value"].encode()
            yield (
                b"\2"
                + yaml.safe_dump(
                    {"kind": "Pod", "metadata": {"name": "web", "annotations": {KEYS[key]: case["value"]}}}
                ).encode()
            )
    for text in (
        "mode: observe\nproxy: {port: 4140, uids: [1337], ipv6: bypass}\ndialects: [nodeagent, istio]\n",
        "defaults:\n  excludeOutboundIPRanges: '@a, 10.0.0.0/8'\nranges:\n  a: [10.1.0.0/16, '2001:db8::/32']\n",
        "guard: {widestExclude: {ipv4: 8}}\nbackend: nft\nhttp: {ui: '[::1]:9641'}\nledger: {seriesLimit: 5}\n",
        "a: &a [1, 0x1, 1.5, yes, ~, 2024-01-01, !!binary aGk=]\nb: *a\n<<: {c: d}\n? [x]\n: |\n  y\n",
    ):
        yield b"\1" + text.encode()
        yield (
            b"\2kind: List\nitems:\n- kind: Pod\n  metadata: {name: a}\n  status: {podIPs: [{ip: '::1'}]}\n---\n"
            + text.encode()
        )


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
