"""The service: REST API, leaderboard pages, database and the `gklbench` command. Never imports torch."""
