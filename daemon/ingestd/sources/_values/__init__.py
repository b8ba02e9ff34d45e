"""From a Kafka record to what an event is made of: the formats of values and keys, and the schema registry."""
