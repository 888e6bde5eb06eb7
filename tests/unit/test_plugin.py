"""`kubectl nodeagent` without a cluster: what it says where there is none, and what it does not load."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nodeagent.errors import InputError, UnreachableError
from nodeagent.plugin import main
from nodeagent.plugin.kubectl import Kubectl


def test_without_kubectl_it_says_what_to_install(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["status", "--kubectl", str(tmp_path / "kubectl")]) == InputError.exit_code
    assert "install kubectl, or give its path (--kubectl)" in capsys.readouterr().err


@pytest.mark.parametrize("pod", ["web", "shop/", "/web"])
def test_a_pod_is_named_with_its_namespace(capsys: pytest.CaptureFixture[str], pod: str) -> None:
    assert main(["explain", "--pod", pod, "--to", "192.0.2.1:80", "--kubectl", "true"]) == InputError.exit_code
    assert "give NAMESPACE/NAME" in capsys.readouterr().err


def test_a_program_that_is_no_kubectl_is_told_from_one() -> None:
    with pytest.raises(UnreachableError, match="is it kubectl"):
        Kubectl("true").get("pods")


def test_a_tunnel_that_cannot_be_had_leaves_no_process() -> None:
    with pytest.raises(UnreachableError, match="kubectl port-forward"), Kubectl("ls").tunnel("n", "p", 1):
        pass


def test_the_plugin_is_for_laptops() -> None:
    """It loads nothing that takes Linux' netfilter or BPF, nor the agent."""
    script = "import nodeagent.plugin, sys, json; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout)
    tops = {name.partition(".")[0] for name in loaded}
    assert not tops & {"bcc", "iptc", "pyroute2", "aiohttp", "kubernetes", "prometheus_client"}
    assert not {name for name in loaded if name.startswith(("nodeagent.agent", "nodeagent.web", "nodeagent.bpf"))}


def test_the_script_has_the_name_by_which_kubectl_finds_it() -> None:
    script = Path(sys.executable).with_name("kubectl-nodeagent")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("nodeagent ")
