"""`pyvtep web`: a read-only page about a running VTEP, served from a process of its own."""
