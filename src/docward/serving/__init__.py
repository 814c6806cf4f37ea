"""The defended model, shipped."""
