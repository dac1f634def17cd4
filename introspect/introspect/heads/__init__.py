"""Visual heads: which attention heads look at the evidence, found without training (`introspect score-heads`)."""
