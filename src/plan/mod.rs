//! What this host's kernel should hold, and how that differs from what it holds. Pure.
