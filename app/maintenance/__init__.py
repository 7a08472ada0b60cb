"""Work besides requests and jobs: the relay, cleanup, metrics, disk usage, upgrades."""
