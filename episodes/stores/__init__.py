"""What a store of decoded frames consists of."""
