"""Network namespaces, safely: find, prove, enter, leave.

Only a process that owns an empty namespace of its own (:class:`nodeagent.netns.home.Home`)
ever calls ``setns``; the agent and the command line never do.
"""
