"""A directory of manifests: what a scan finds after each way to edit it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.errors import InputError
from nodeagent.files.configuration import ConfigurationFile
from nodeagent.files.directory import PodDirectory


class Clock:
    """Counts seconds when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def source(tmp_path: Path, clock: Clock) -> Iterator[PodDirectory]:
    directory = PodDirectory(str(tmp_path), clock)
    directory.scan()
    yield directory
    directory.close()


def pod(name: str, **annotations: str) -> str:
    notes = ", ".join(f'"nodeagent.io/{key}": "{value}"' for key, value in annotations.items())
    return f"{{kind: Pod, metadata: {{name: {name}, annotations: {{{notes}}}}}}}\n"


def names(source: PodDirectory) -> list[str]:
    source.heard()
    return sorted(key.name for key in source.scan().pods)


def test_files_that_come_change_and_go(source: PodDirectory, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(pod("one") + "---\n" + pod("two"))
    assert source.heard()
    assert names(source) == ["one", "two"]
    path.write_text(pod("three"))
    assert names(source) == ["three"]
    path.rename(tmp_path / "b.yml")
    assert names(source) == ["three"]
    (tmp_path / "b.yml").unlink()
    assert names(source) == []
    assert not source.heard()


@pytest.mark.parametrize("name", [".a.yaml", "a.yaml~", "a.yaml.swp", "notes.txt"])
def test_what_is_no_manifest_by_its_name_is_nothing(source: PodDirectory, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(pod("one"))
    assert names(source) == []


def test_a_pipe_or_a_dangling_link_is_not_waited_for(source: PodDirectory, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").symlink_to("/nowhere")
    assert names(source) == []


def test_links_that_are_swapped_as_a_configmaps(source: PodDirectory, tmp_path: Path) -> None:
    for version in ("one", "two"):
        (tmp_path / f"..{version}").mkdir()
        (tmp_path / f"..{version}" / "a.yaml").write_text(pod(version))
    (tmp_path / "..data").symlink_to("..one")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    assert names(source) == ["one"]
    (tmp_path / "..new").symlink_to("..two")
    (tmp_path / "..new").rename(tmp_path / "..data")
    assert source.heard()
    assert names(source) == ["two"]


def test_a_bad_edit_keeps_the_last_good_pods(source: PodDirectory, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(pod("one"))
    assert names(source) == ["one"]
    path.write_text("kind: Service\n")
    found = source.scan()
    assert [key.name for key in found.pods] == ["one"]
    assert "not a Pod" in found.problems["a.yaml"]
    path.write_text(pod("two"))
    source.heard()
    assert source.scan().problems == {}


def test_a_file_is_read_when_its_writer_is_done(source: PodDirectory, tmp_path: Path, clock: Clock) -> None:
    with (tmp_path / "a.yaml").open("w") as file:
        file.write(pod("one"))
        file.flush()
        assert names(source) == []
        assert source.is_unfinished
        clock.now += 10  # it keeps it open, and writes no more
        assert names(source) == ["one"]
    assert names(source) == ["one"]


def test_one_name_in_two_files_is_the_first_files(source: PodDirectory, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(pod("one", intercept="observe"))
    (tmp_path / "b.yaml").write_text(pod("one", intercept="disabled"))
    found = source.scan()
    assert [manifest.annotations["nodeagent.io/intercept"] for manifest in found.pods.values()] == ["observe"]
    assert "is in a.yaml already" in found.problems["b.yaml"]


def test_a_directory_that_is_gone_says_nothing_about_its_pods(source: PodDirectory, tmp_path: Path) -> None:
    away = tmp_path.with_name(f"{tmp_path.name}-away")
    tmp_path.rename(away)
    source.heard()
    with pytest.raises(InputError, match="cannot be listed"):
        source.scan()
    assert source.is_unfinished
    away.rename(tmp_path)
    (tmp_path / "a.yaml").write_text(pod("one"))
    assert names(source) == ["one"]
    assert not source.is_unfinished


def test_a_configuration_file_says_once_that_it_changed(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("mode: observe\n")
    file = ConfigurationFile(str(path), clock)
    assert file.changed()
    assert not file.changed()
    (tmp_path / "other").write_text("")
    assert not file.changed()
    with path.open("a") as writer:
        writer.write("backend: nft\n")
        writer.flush()
        assert not file.changed()
    assert file.changed()
    assert file.read().backend == "nft"
    path.unlink()
    assert file.changed()
    with pytest.raises(InputError):
        file.read()
    file.close()
