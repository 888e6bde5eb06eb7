"""Pods and configuration from files: for the command line, and for nodes without a cluster."""
