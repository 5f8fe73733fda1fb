"""Texts with known answers, for measures that need them."""
