"""A container runtime's side of NRI: it keeps pods, calls plugins, and lets nobody hold a pod up for long."""
