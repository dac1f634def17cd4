"""What the queries of a generated span give every retained entry."""
