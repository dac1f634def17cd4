"""Worlds: generators of labelled cases whose truth is exact, and the form in which cases are exchanged."""
