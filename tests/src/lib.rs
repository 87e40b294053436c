//! End-to-end tests of virt-cdp on real guests.
