"""What is measured of every head, a kind of measure in each file."""
