"""Probes: traces, worlds, labels, fitting and evaluation."""
