"""Low-rank adapters: their weights, their files (PEFT's format), and how rows of one batch use different ones."""
