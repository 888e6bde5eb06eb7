"""`make demo`: see interception, and the truth about it, on this machine's kernel, in namespaces of its own.

:mod:`tests.demo.intent` programs a pod and shows which way its connections go;
:mod:`tests.demo.truth` lets the agent run, and shows what its ledger says that the pod did.
"""
