//! A plain QMP socket.
