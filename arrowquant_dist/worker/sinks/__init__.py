"""What a worker can write: one module per sink, each implementing `worker.sink`."""
