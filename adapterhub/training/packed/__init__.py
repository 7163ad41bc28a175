"""The Llama family in training: rows of many tasks as one packed line, forward and backward over frozen weights."""
