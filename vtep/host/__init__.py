"""The host's network: links, routes, TAP set-up, events, firewall rules, address probes."""
