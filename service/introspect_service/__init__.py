"""HTTP, streams and the command line around the runtime and its probes."""
