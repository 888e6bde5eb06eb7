"""The cluster configuration from a file."""

from nodeagent.files.text import read_text
from nodeagent.policy.configuration import LARGEST, Configuration, read_configuration


def load_configuration(path: str | None) -> Configuration:
    """Return the configuration of the file at *path*; without one, every default holds.

    Raises:
        InputError: the file cannot be read, or says something that is not understood.
    """
    if path is None:
        return Configuration()
    name, text = read_text(path, LARGEST)
    return read_configuration(text, name)
