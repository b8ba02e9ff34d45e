"""The commands: parse, call, print. Answers go to standard output, logs to standard error."""
