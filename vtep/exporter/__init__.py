"""The exporter of metrics for Prometheus: a process that reads the status of a running VTEP.

It forwards nothing and imports nothing of the data path. `metrics` says which metrics there are and
makes them from a status; `collector` gets that status at each scrape; `server` and `textfile` hand
the metrics over. The alert rules and the dashboard, which use them, are in `data`.
"""
