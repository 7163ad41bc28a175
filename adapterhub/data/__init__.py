"""Examples in and out of files, and the one way their fields become prompts and token ids."""
