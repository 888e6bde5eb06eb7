"""What the container runtime leaves on a node: the cgroups of pods and containers."""
