"""What all of `app` uses: settings, errors, logs, tracing, formatting. Imports no other package of `app`."""
