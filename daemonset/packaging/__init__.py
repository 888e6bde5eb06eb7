"""The chart's generated files: the schema of its values, and the plain manifests that are rendered from it."""
