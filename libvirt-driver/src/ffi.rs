//! The calls of libvirt that the `virt` crate does not wrap: events, descriptors, block jobs, states.
//!
//! Why unsafe: `virt` 0.5 has no wrappers for them and hands out raw pointers instead. This is the only module
//! of the crate with unsafe code; every function here is safe to call.
//!
//! How callbacks live: a boxed closure is given to libvirt as the opaque pointer, and libvirt's free
//! callback drops it, so it lives exactly as long as libvirt may call it. Closures must not panic and must not
//! block: they run on the event-loop thread.
#![expect(
    unsafe_code,
    reason = "direct calls of libvirt's C functions, see the module header"
)]

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;
use virt_sys as sys;

/// What libvirt tells about a domain, with the domain's UUID and name.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RawEvent<'a> {
    /// A lifecycle event: virDomainEventType and its detail.
    Lifecycle(c_int, c_int),
    /// The guest rebooted.
    Reboot,
    /// A device was plugged in; its alias.
    DeviceAdded(&'a str),
    /// A device is gone; its alias.
    DeviceRemoved(&'a str),
}

/// What is called for each event: UUID, name, event.
pub(crate) type EventClosure = Box<dyn Fn(&str, &str, RawEvent<'_>) + Send + Sync>;
/// What is called when the connection is closed.
pub(crate) type CloseClosure = Box<dyn Fn() + Send + Sync>;

/// The registrations made with one connection, for [`unregister`].
#[derive(Debug)]
pub(crate) struct Registrations {
    events: Vec<c_int>,
}

/// Registers `make_event`'s closures for lifecycle, reboot and device events, and `on_close` for the connection's end.
pub(crate) fn register(
    connect: &Connect,
    make_event: impl Fn() -> EventClosure,
    on_close: CloseClosure,
) -> Result<Registrations, Error> {
    type Generic = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);
    // SAFETY: libvirt stores the callback as the generic type and calls it back with the type that belongs
    // to the event ID, which is the type each function below has; this cast is what VIR_DOMAIN_EVENT_CALLBACK() is in C.
    let callbacks: [(c_uint, Generic); 4] = unsafe {
        [
            (
                sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE,
                std::mem::transmute::<LifecycleCallback, Generic>(on_lifecycle),
            ),
            (sys::VIR_DOMAIN_EVENT_ID_REBOOT, on_reboot),
            (
                sys::VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
                std::mem::transmute::<DeviceCallback, Generic>(on_device_added),
            ),
            (
                sys::VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
                std::mem::transmute::<DeviceCallback, Generic>(on_device_removed),
            ),
        ]
    };
    let mut registrations = Registrations { events: Vec::new() };
    for (event_id, callback) in callbacks {
        let opaque = Box::into_raw(Box::new(make_event()));
        // SAFETY: the connection is alive (borrowed); `opaque` is a boxed EventClosure that `free_event` drops once.
        let id = unsafe {
            sys::virConnectDomainEventRegisterAny(
                connect.as_ptr(),
                ptr::null_mut(),
                event_id as c_int,
                Some(callback),
                opaque.cast(),
                Some(free_event),
            )
        };
        if id < 0 {
            let error = Error::last_error();
            // SAFETY: the registration failed, so libvirt did not take the pointer.
            drop(unsafe { Box::from_raw(opaque) });
            unregister(connect, registrations);
            return Err(error);
        }
        registrations.events.push(id);
    }
    let opaque = Box::into_raw(Box::new(on_close));
    // SAFETY: as above; `opaque` is a boxed CloseClosure that `free_close` drops once.
    let ret = unsafe {
        sys::virConnectRegisterCloseCallback(
            connect.as_ptr(),
            Some(on_closed),
            opaque.cast(),
            Some(free_close),
        )
    };
    if ret < 0 {
        let error = Error::last_error();
        // SAFETY: the registration failed, so libvirt did not take the pointer.
        drop(unsafe { Box::from_raw(opaque) });
        unregister(connect, registrations);
        return Err(error);
    }
    Ok(registrations)
}

/// Takes back what [`register`] registered; without it the connection's references never reach zero.
pub(crate) fn unregister(connect: &Connect, registrations: Registrations) {
    for id in registrations.events {
        // SAFETY: the connection object is alive (borrowed), even where the connection itself is lost.
        unsafe { sys::virConnectDomainEventDeregisterAny(connect.as_ptr(), id) };
    }
    // SAFETY: as above.
    unsafe { sys::virConnectUnregisterCloseCallback(connect.as_ptr(), Some(on_closed)) };
}

type LifecycleCallback =
    unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void) -> c_int;
type DeviceCallback =
    unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *const c_char, *mut c_void);

unsafe extern "C" fn on_lifecycle(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: c_int,
    detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: called by libvirt with a live domain and the opaque pointer of the registration.
    unsafe { call(domain, opaque, RawEvent::Lifecycle(event, detail)) };
    0
}

unsafe extern "C" fn on_reboot(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    opaque: *mut c_void,
) {
    // SAFETY: as in on_lifecycle.
    unsafe { call(domain, opaque, RawEvent::Reboot) };
}

unsafe extern "C" fn on_device_added(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    alias: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: as in on_lifecycle; the alias is a C string that lives during the call.
    unsafe { call(domain, opaque, RawEvent::DeviceAdded(&text(alias))) };
}

unsafe extern "C" fn on_device_removed(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    alias: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: as in on_device_added.
    unsafe { call(domain, opaque, RawEvent::DeviceRemoved(&text(alias))) };
}

unsafe extern "C" fn on_closed(_: sys::virConnectPtr, _reason: c_int, opaque: *mut c_void) {
    // SAFETY: `opaque` is the boxed CloseClosure of the registration, alive until free_close.
    let closure = unsafe { &*opaque.cast::<CloseClosure>() };
    closure();
}

unsafe extern "C" fn free_event(opaque: *mut c_void) {
    // SAFETY: libvirt calls this once for each registration, after the last event.
    drop(unsafe { Box::from_raw(opaque.cast::<EventClosure>()) });
}

unsafe extern "C" fn free_close(opaque: *mut c_void) {
    // SAFETY: as in free_event.
    drop(unsafe { Box::from_raw(opaque.cast::<CloseClosure>()) });
}

/// SAFETY: `domain` is alive and `opaque` is a boxed EventClosure.
unsafe fn call(domain: sys::virDomainPtr, opaque: *mut c_void, event: RawEvent<'_>) {
    let mut uuid = [0 as c_char; sys::VIR_UUID_STRING_BUFLEN as usize];
    // SAFETY: the buffer has the length libvirt asks for; both calls only read the domain object.
    let (uuid, name) = unsafe {
        if sys::virDomainGetUUIDString(domain, uuid.as_mut_ptr()) < 0 {
            return;
        }
        (text(uuid.as_ptr()), text(sys::virDomainGetName(domain)))
    };
    // SAFETY: by this function's contract.
    let closure = unsafe { &*opaque.cast::<EventClosure>() };
    closure(&uuid, &name, event);
}

/// SAFETY: `pointer` is null or a C string.
unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: by this function's contract.
    unsafe { CStr::from_ptr(pointer) }
        .to_string_lossy()
        .into_owned()
}

/// Returns virDomainGetState's state and reason.
pub(crate) fn state(domain: &Domain) -> Result<(c_uint, c_uint), Error> {
    let (mut state, mut reason) = (0, 0);
    // SAFETY: the domain is alive (borrowed); both out-parameters live during the call.
    let ret = unsafe { sys::virDomainGetState(domain.as_ptr(), &mut state, &mut reason, 0) };
    if ret < 0 {
        return Err(Error::last_error());
    }
    Ok((state as c_uint, reason as c_uint))
}

/// Sends a QMP command together with a descriptor; returns QEMU's reply as it is.
pub(crate) fn monitor_command_with_fd(
    domain: &Domain,
    command: &str,
    fd: BorrowedFd<'_>,
) -> Result<String, Error> {
    let command = CString::new(command)?;
    let mut files = [fd.as_raw_fd()];
    let mut result: *mut c_char = ptr::null_mut();
    // SAFETY: the domain and the descriptor are alive (borrowed); no descriptors are asked back, so null is allowed there;
    // libvirt duplicates the descriptor.
    let ret = unsafe {
        sys::virDomainQemuMonitorCommandWithFiles(
            domain.as_ptr(),
            command.as_ptr(),
            1,
            files.as_mut_ptr(),
            ptr::null_mut(),
            ptr::null_mut(),
            &mut result,
            0,
        )
    };
    if ret < 0 {
        return Err(Error::last_error());
    }
    // SAFETY: on success `result` is null or a C string that is ours.
    let reply = unsafe { text(result) };
    release(result);
    Ok(reply)
}

/// Frees a string libvirt allocated.
fn release(string: *mut c_char) {
    unsafe extern "C" {
        fn free(pointer: *mut c_void);
    }
    // SAFETY: libvirt allocates what it returns with malloc and leaves it to the caller to free; null is allowed.
    unsafe { free(string.cast()) };
}

/// A block job's progress, in bytes (virDomainGetBlockJobInfo).
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockJob {
    pub(crate) done: u64,
    pub(crate) total: u64,
}

/// Starts virDomainBlockPull on the disk of that target, at full speed.
pub(crate) fn block_pull(domain: &Domain, target: &str) -> Result<(), Error> {
    let target = CString::new(target)?;
    // SAFETY: domain and string are alive during the call.
    let ret = unsafe { sys::virDomainBlockPull(domain.as_ptr(), target.as_ptr(), 0, 0) };
    if ret < 0 {
        Err(Error::last_error())
    } else {
        Ok(())
    }
}

/// Returns the block job on the disk of that target, or none.
pub(crate) fn block_job(domain: &Domain, target: &str) -> Result<Option<BlockJob>, Error> {
    let target = CString::new(target)?;
    let mut info = sys::virDomainBlockJobInfo {
        type_: 0,
        bandwidth: 0,
        cur: 0,
        end: 0,
    };
    // SAFETY: domain, string and out-parameter are alive during the call.
    let ret =
        unsafe { sys::virDomainGetBlockJobInfo(domain.as_ptr(), target.as_ptr(), &mut info, 0) };
    match ret {
        0 => Ok(None),
        ret if ret > 0 => Ok(Some(BlockJob {
            done: info.cur,
            total: info.end,
        })),
        _ => Err(Error::last_error()),
    }
}

/// Stops the block job on the disk of that target, and waits until it is gone.
pub(crate) fn block_job_abort(domain: &Domain, target: &str) -> Result<(), Error> {
    let target = CString::new(target)?;
    // SAFETY: domain and string are alive during the call.
    let ret = unsafe { sys::virDomainBlockJobAbort(domain.as_ptr(), target.as_ptr(), 0) };
    if ret < 0 {
        Err(Error::last_error())
    } else {
        Ok(())
    }
}

/// Returns the leases a network has given: MAC address in lower case, and IP address.
pub(crate) fn leases(
    network: &virt::network::Network,
) -> Result<Vec<(String, std::net::IpAddr)>, Error> {
    let mut list: *mut sys::virNetworkDHCPLeasePtr = ptr::null_mut();
    // SAFETY: the network is alive (borrowed); no MAC address asks for all; libvirt sets `list` to an array that is ours.
    let count =
        unsafe { sys::virNetworkGetDHCPLeases(network.as_ptr(), ptr::null(), &mut list, 0) };
    if count < 0 {
        return Err(Error::last_error());
    }
    let mut found = Vec::new();
    for at in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: the array has `count` leases, each alive until it is freed right here, once.
        let (mac, ip) = unsafe {
            let lease = *list.add(at);
            let told = (text((*lease).mac), text((*lease).ipaddr));
            sys::virNetworkDHCPLeaseFree(lease);
            told
        };
        if let Ok(ip) = ip.parse() {
            found.push((mac.to_ascii_lowercase(), ip));
        }
    }
    release(list.cast());
    Ok(found)
}
