"""Cgroups of pods and containers, in directories made as kubelets and runtimes make them."""

from pathlib import Path

import pytest

from nodeagent.runtime.cgroups import PodCgroup, container_id, find_containers, find_pod

UID = "0b9d6f3e-1111-2222-3333-444455556666"
SPELT = UID.replace("-", "_")
ID = "4f2a" * 16

PODS = {
    "cgroupfs, guaranteed": f"kubepods/pod{UID}",
    "cgroupfs, burstable": f"kubepods/burstable/pod{UID}",
    "cgroupfs, best effort": f"kubepods/besteffort/pod{UID}",
    "cgroupfs, below the kubelet's own": f"kubelet/kubepods/burstable/pod{UID}",
    "systemd, guaranteed": f"kubepods.slice/kubepods-pod{SPELT}.slice",
    "systemd, burstable": f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SPELT}.slice",
    "systemd, best effort": f"kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{SPELT}.slice",
    "systemd, below the kubelet's own": "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/"
    f"kubelet-kubepods-burstable-pod{SPELT}.slice",
}
CONTAINERS = {
    "cgroupfs": (ID, ID),
    "containerd": (f"cri-containerd-{ID}.scope", ID),
    "CRI-O": (f"crio-{ID}.scope", ID),
    "Docker": (f"docker-{ID}.scope", ID),
    "CRI-O's monitor is none": (f"crio-conmon-{ID}.scope", None),
    "a slice is none": ("nested.slice", None),
    "a service is none": ("something.service", None),
    "hidden is none": (".hidden", None),
}


@pytest.mark.parametrize("place", PODS.values(), ids=PODS)
def test_a_pod_is_found_wherever_its_kubelet_put_it(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(parents=True)
    assert find_pod(tmp_path, UID) == PodCgroup(tmp_path / place, (tmp_path / place).stat().st_ino)


@pytest.mark.fault(20)
def test_a_static_pod_is_found_by_the_hash_of_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "kubepods/podabcdef012345").mkdir(parents=True)
    found = find_pod(tmp_path, "abcdef012345", UID)
    assert found
    assert found.path.name == "podabcdef012345"


@pytest.mark.parametrize("uid", ["", "../../etc", "a/b", ".", "x\n", UID])
def test_what_is_no_uid_or_not_there_finds_nothing(tmp_path: Path, uid: str) -> None:
    (tmp_path / "kubepods").mkdir()
    assert find_pod(tmp_path, uid) is None


@pytest.mark.parametrize(("directory", "expected"), CONTAINERS.values(), ids=CONTAINERS)
def test_a_container_is_known_by_its_directory(directory: str, expected: str | None) -> None:
    assert container_id(directory) == expected


def test_containers_are_named_by_inode_and_files_are_none(tmp_path: Path) -> None:
    (tmp_path / ID).mkdir()
    (tmp_path / "cgroup").write_text("")
    (tmp_path / "memory").write_text("")
    assert find_containers(PodCgroup(tmp_path, 1)) == {(tmp_path / ID).stat().st_ino: ID}
    assert find_containers(PodCgroup(tmp_path / "gone", 1)) == {}
