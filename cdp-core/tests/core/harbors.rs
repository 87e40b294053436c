//! harbors
