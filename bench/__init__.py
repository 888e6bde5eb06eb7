"""Benchmarks: ratios within one interleaved run, medians with their spread.

``python -m bench`` measures everything that docs/performance.md shows, in namespaces of its
own; ``python -m bench --quick`` does the same with fewer samples.  Machines are shared and
noisy: absolute times mean little, ratios of neighbouring samples do.
"""
