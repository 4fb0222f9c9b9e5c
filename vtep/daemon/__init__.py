"""A VTEP at work: its ports, listeners, timers, reconfiguration and state."""
