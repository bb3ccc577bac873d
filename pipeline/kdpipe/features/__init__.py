"""Audio to normalised, augmented log-mel features."""
