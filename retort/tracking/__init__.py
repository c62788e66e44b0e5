"""MLflow. What it shows is projected from a run's artifacts, so projecting a run twice changes nothing."""
