"""Texts as counts of their words and pairs of words: what features of a base blur, such as "who" against "where"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_WORDS = r"\w+|[^\w\s]"


def word_features(texts: Sequence[str]) -> Any | None:
    """Return a sparse float64 matrix [texts, words] of TF-IDF; None where no word is in two texts.

    Single words, punctuation and pairs of neighbours, those that occur in one text alone left out.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    counter = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2, token_pattern=_WORDS)
    try:
        return counter.fit_transform(texts).tocsr()
    except ValueError:  # an empty vocabulary
        return None
