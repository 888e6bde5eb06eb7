"""``kubectl nodeagent``: asks the agents of a cluster, from wherever kubectl works.

An agent tells who talked to whom only on its pod's own loopback address.  ``kubectl port-forward`` reaches that: it
takes the right to ``pods/portforward`` in the agents' namespace, and no more.  The API server's proxy for pods does not
reach loopback; ``kubectl exec`` would take the right to run programs beside the programmer, and run one Python per
question within the agent's memory limit.

kubectl itself finds the cluster and logs in, so that all of its ways to do so work here too.
"""

from nodeagent.plugin.command import main

__all__ = ["main"]
