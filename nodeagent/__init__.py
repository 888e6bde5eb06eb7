"""Node-level traffic interception for Kubernetes pods, and the truth about what bypassed it."""

__version__ = "0.1.0.dev0"
