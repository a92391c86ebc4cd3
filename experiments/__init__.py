"""Commands: each stage of the method, and the whole of it, `python -m experiments.rft`."""
