"""Running as a service: notifications to the manager, units, the watchdog, and the background."""
