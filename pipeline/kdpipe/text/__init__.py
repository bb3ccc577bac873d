"""Text normalisation and the sentencepiece tokenizer."""
