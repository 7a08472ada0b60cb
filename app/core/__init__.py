"""What every room uses: settings, errors, logs, tracing, formatting. Imports nothing of the other rooms."""
