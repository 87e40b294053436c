//! back_pressure
