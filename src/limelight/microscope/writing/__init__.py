"""What a decoder writes: a text that it continues, and what it expected at each token."""
