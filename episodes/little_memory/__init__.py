"""What training in two passes consists of."""
