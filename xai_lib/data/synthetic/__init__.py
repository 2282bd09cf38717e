"""Seeded images with exact ground truth, one module per imaging technique."""
