"""Where events come from: one file, one kind of source."""
