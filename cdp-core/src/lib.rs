//! What virt-cdp keeps and how it is found again: buffer, journal, points, base points, views.
