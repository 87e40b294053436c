//! The capture end: QEMU writes to us over NBD.
