"""The only loop: it compares what should be with what is, and mends the difference, pod by pod.

Level-triggered: events (a file, a cgroup, a netlink message, a timer) only say *look again*; what is
done follows from what is found.  All state belongs to one asyncio loop; what blocks runs in one worker.
"""
