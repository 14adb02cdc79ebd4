"""What a worker can write: a file a sink, each a member of `worker.sink`."""
