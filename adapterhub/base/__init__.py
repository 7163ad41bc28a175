"""The frozen foundation model: where it comes from, what it is, and how it is loaded."""
