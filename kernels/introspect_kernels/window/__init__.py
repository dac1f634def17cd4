"""What the last queries of a prompt give every key, and the head statistics of chosen prompt rows."""
