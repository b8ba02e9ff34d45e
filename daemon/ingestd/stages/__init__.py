"""Extract, chunk, embed, write: a port turned into a stage."""
