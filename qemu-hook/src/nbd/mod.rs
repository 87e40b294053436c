//! NBD, both directions.
