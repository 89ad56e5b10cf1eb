"""Parts of a store of decoded frames: blocks, content, key and build."""
