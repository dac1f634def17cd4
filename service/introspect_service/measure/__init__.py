"""What `introspect bench service` measures, and how: real processes, real sockets, a real Valkey."""
