"""Pods are real: they run, talk to each other and to the API server.  On any cluster."""

import pytest

from tests.cluster.pods import Pods, listening

pytestmark = pytest.mark.cluster

PORT = 8080
SERVER = ("python3", "-m", "http.server", str(PORT), "--bind", "::")
GET = "import sys, urllib.request as u; sys.stdout.write(str(u.urlopen(sys.argv[1], timeout=10).status))"
WHO_AM_I = """
import json, ssl, urllib.request
folder = "/var/run/secrets/kubernetes.io/serviceaccount"
context = ssl.create_default_context(cafile=f"{folder}/ca.crt")
request = urllib.request.Request("https://@HOST@/apis/authentication.k8s.io/v1/selfsubjectreviews", method="POST")
request.add_header("Authorization", "Bearer " + open(f"{folder}/token").read())
request.add_header("Content-Type", "application/json")
request.data = json.dumps({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}).encode()
print(json.load(urllib.request.urlopen(request, context=context))["status"]["userInfo"]["username"])
"""


def test_a_pod_runs_a_command_and_its_output_can_be_read(pods: Pods) -> None:
    pod = pods.run("speaks", "sh", "-c", "echo spoken; exec sleep infinity")
    assert pod.exec("cat", "/proc/1/comm") == "sleep\n"
    assert pods.cluster.api.text(f"{pod.path}/log") == "spoken\n"


def test_pods_reach_each_other_by_every_address_they_have(pods: Pods) -> None:
    server = pods.run("server", *SERVER, container=listening(PORT))
    client = pods.run("client")
    assert server.addresses
    for address in server.addresses:
        host = f"[{address}]" if ":" in address else address
        assert client.exec("python3", "-c", GET, f"http://{host}:{PORT}/etc/passwd") == "200"


def test_a_pod_knows_who_it_is_from_the_api_server(pods: Pods) -> None:
    """By the token and the service address that every pod is given, as an agent in the cluster does."""
    pod = pods.run("asks")
    host = pod.exec("sh", "-c", "echo $KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT").strip()
    assert (
        pod.exec("python3", "-c", WHO_AM_I.replace("@HOST@", host)).strip()
        == f"system:serviceaccount:{pods.namespace}:default"
    )


def test_a_native_sidecar_runs_before_the_container(pods: Pods) -> None:
    order = [{"name": "shared", "emptyDir": {}}]
    mounts = [{"name": "shared", "mountPath": "/shared"}]
    sidecar = {
        "name": "sidecar",
        "image": pods.cluster.image,
        "restartPolicy": "Always",
        "command": ["sh", "-c", "echo here > /shared/sidecar; exec sleep infinity"],
        "startupProbe": {"exec": {"command": ["test", "-e", "/shared/sidecar"]}, "periodSeconds": 1},
        "volumeMounts": mounts,
    }
    command = ("sh", "-c", "cat /shared/sidecar; exec sleep infinity")
    pod = pods.run("accompanied", *command, container={"volumeMounts": mounts}, volumes=order, initContainers=[sidecar])
    assert pods.cluster.api.text(f"{pod.path}/log", container="main") == "here\n"


def test_seccomp_profiles_are_applied(pods: Pods) -> None:
    pod = pods.run("confined", securityContext={"seccompProfile": {"type": "RuntimeDefault"}})
    assert "Seccomp:\t2\n" in pod.exec("cat", "/proc/1/status")


def test_a_deleted_pod_is_gone(pods: Pods) -> None:
    pod = pods.run("brief")
    pod.delete()
    assert pods.cluster.api.get(f"/api/v1/namespaces/{pods.namespace}/pods")["items"] == []
