"""From noisy sources of labels to soft labels: voters, label models, analysis, label errors.

What a file of labelling functions needs can be imported from here; nothing heavy comes with it.
"""

from __future__ import annotations

from .functions import ABSTAIN, labeling_function
from .helpers import dictionary, keywords, length, model, nearest, pattern

__all__ = ["ABSTAIN", "dictionary", "keywords", "labeling_function", "length", "model", "nearest", "pattern"]
