"""Continuous batching over one frozen base: token ids, slots and weights; no text, no HTTP, no registry."""
