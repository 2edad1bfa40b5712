"""From media files to decoded frames: indexing, sampling, and decoding in a child process."""
