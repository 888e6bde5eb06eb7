"""Pods and containers as containerd describes them."""

from nodeagent.nri import messages

UID = "8a9f3c1e-5d2b-4f6a-9c1d-{:012x}"


def pod(number: int = 1, **annotations: str) -> messages.PodSandbox:
    """Return pod *number*; *annotations* are keys of ours without their prefix."""
    uid = UID.format(number)
    return messages.PodSandbox(
        id=f"{number:064x}",
        name=f"web-{number}",
        uid=uid,
        namespace="shop",
        labels={"app": "web"},
        annotations={f"nodeagent.io/{key}": value for key, value in annotations.items()},
        pid=1000 + number,
        ips=[f"10.244.{number >> 8 & 255}.{number & 255}", f"fd00:244::{number:x}"],
        linux=messages.LinuxPodSandbox(
            cgroup_parent=f"/kubepods/besteffort/pod{uid}",
            cgroups_path=f"/kubepods/besteffort/pod{uid}/{number:064x}",
            namespaces=[
                messages.LinuxNamespace(type="pid"),
                messages.LinuxNamespace(type="network", path=f"/var/run/netns/cni-{number:032x}"),
            ],
        ),
    )


def container(number: int, of: messages.PodSandbox, name: str = "app") -> messages.Container:
    identity = f"{number:063x}c"
    return messages.Container(
        id=identity,
        pod_sandbox_id=of.id,
        name=name,
        linux=messages.LinuxContainer(cgroups_path=f"{of.linux.cgroup_parent}/{identity}"),
        user=messages.User(uid=1337, gid=0),
    )
