"""Training: examples and a frozen base become an adapter folder; nothing is published here."""
