"""What a person or a supervisor sees of the daemon: logs, health, metrics, the control socket, systemd."""
