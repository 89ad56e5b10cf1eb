"""Decoding: from video files, frame folders and zips to exactly the frames that were asked for."""
