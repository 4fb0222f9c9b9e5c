"""The cost of scale: a million FDB entries, a thousand remotes, a thousand VNIs."""
