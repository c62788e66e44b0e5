"""MLflow: a projection of a run's artifacts, so that it can be made again and changes nothing."""
