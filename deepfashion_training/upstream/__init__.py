"""What drives a training script that is not ours."""
