"""What the Kafka source is made of, and what else talks to brokers: shared modules, no plug-ins."""
