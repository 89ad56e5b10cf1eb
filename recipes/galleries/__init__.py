"""What the commands enroll and recognize share."""
