"""What one run over one text or picture shows: a `Reading`, how it is gathered, and what follows from it."""
