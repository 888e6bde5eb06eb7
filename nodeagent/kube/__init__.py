"""The API server: this node's pods by one watch, and Events about them.  Raw JSON, bounded memory, good manners.

:class:`~nodeagent.kube.watch.PodWatch` is the source of pods, :class:`~nodeagent.kube.events.Events` tells people;
both speak through one :class:`~nodeagent.kube.client.Client`.
"""
