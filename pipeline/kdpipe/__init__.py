"""Cache an autoregressive recogniser's outputs once; distil them into fast Mask-CTC students."""
