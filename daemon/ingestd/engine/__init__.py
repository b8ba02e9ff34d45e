"""The engine: what carries events from sources to settle, whatever the plug-ins are."""
