"""The Celery worker: claims jobs and supervises the processes that run them."""
