"""From noisy sources of labels to soft labels: voters, label models, analysis, label errors."""
