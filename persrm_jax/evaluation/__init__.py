"""Verdicts on held-out pairs, statistics, baselines and the report."""
