"""Reports and atlases in a terminal."""
