"""The embedded model: its tokenizer, its shape and its training."""
