"""Error rates on id-aligned pairs, confidence intervals, score.json."""
