"""What it costs to be large: a million FDB entries, a thousand remotes, a thousand VNIs."""
