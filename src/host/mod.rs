//! This host's kernel: read its facts, apply changes.
