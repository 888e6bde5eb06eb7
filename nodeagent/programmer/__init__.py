"""The privileged half: enters namespaces, applies rule sets, reads them back.

It parses nothing that a pod's owner wrote: what reaches it through the seam is a rule set,
already validated, and a namespace that it proves for itself.
"""
