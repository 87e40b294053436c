//! libvirt domains for virt-cdp: discovery, XML, the monitor as a QMP transport, takeover, lifecycle events.
