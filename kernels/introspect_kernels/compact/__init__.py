"""Moving entries: from a prefill cache into the arena, and together again within an arena's runs."""
