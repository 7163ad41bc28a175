"""Which rows are worth having: duplicates, scores, what to drop, what to label next."""
