"""Utterance records, manifests, importers and the synthetic demo corpus."""
