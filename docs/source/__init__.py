"""The pages of ``docs/reference`` as Python: what the code knows is taken from it, and what it does not is said here.

A key, metric, command or route without a description is an error, so nothing is left out; ``make reference`` writes the
pages, and a test compares.
"""
