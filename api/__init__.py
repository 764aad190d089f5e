"""Online serving over HTTP. Importing any module of this package opens nothing and reads no environment variable."""
