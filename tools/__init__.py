"""What a person runs in development or on a device; not part of the library."""
