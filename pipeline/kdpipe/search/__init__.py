"""Search: CTC prefix scores, greedy CTC, joint CTC/attention beam search, Mask-CTC."""
