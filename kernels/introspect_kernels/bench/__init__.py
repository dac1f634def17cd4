"""Measurements of the kernels: what `introspect bench kernels` runs."""
