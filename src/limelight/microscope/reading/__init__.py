"""What one run over a text, picture or sound shows: a `Reading`, how it is gathered, and what follows from it."""
