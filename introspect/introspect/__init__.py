"""The runtime: load a multimodal LLM, decode under a per-head KV budget, measure every head."""
