"""The container runtime's node resource interface: a pod's rules before its first container."""
