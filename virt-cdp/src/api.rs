//! The API between the daemon and its clients, and the door from the gRPC service to the engine.
//!
//! What: [`v1`] is generated from `proto/virtcdp.proto`. [`Engine`] has one blocking method for every
//! call of it; `daemon::service` calls them off the async threads and turns an [`ApiError`] into a gRPC
//! status.
//!
//! Invariant: whatever an engine answers, a client sees a status code, one sentence saying what is wrong
//! and, where it is known, the cure. An engine knows nothing of gRPC.

/// The messages and services generated from `proto/virtcdp.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("virtcdp.v1");
}

use v1::{
    AssignPolicyRequest, BisectRequest, CloseViewRequest, CreatePointReply, CreatePointRequest,
    DomainHint, DrillDocument, DrillDocumentRequest, DrillIdRequest, DrillList, DrillRequest,
    ExportRequest, Job, JobRequest, LabelPointRequest, ListDrillsRequest, ListPointsRequest,
    Machine, MachineList, MachineRequest, OpenViewRequest, PointChanges, PointList, PointsRequest,
    Policy, PolicyList, PolicyPreview, PolicyRequest, PreviewPolicyRequest, ProtectRequest,
    SetPolicyRequest, Space, SpaceRequest, StatusReply, TakeoverGroupRequest, TakeoverList,
    TakeoverNameRequest, TakeoverReply, TakeoverRequest, UnprotectRequest, VerifyRequest, View,
    ViewList,
};

use crate::daemon::peer::Peer;

/// The metadata key (binary, UTF-8) under which a gRPC status carries the cure.
pub const HINT_KEY: &str = "hint-bin";

/// Says what sort of thing went wrong; each kind is one gRPC status code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ApiErrorKind {
    /// No machine, point, view, takeover or job of that name.
    NotFound,
    /// The name is taken, or the thing is already so.
    AlreadyExists,
    /// The request itself is wrong, whatever the state.
    InvalidArgument,
    /// The request is right, but not in the present state.
    FailedPrecondition,
    /// Disk full, or a bound reached.
    ResourceExhausted,
    /// The caller, or the daemon itself, may not do this.
    PermissionDenied,
    /// Something outside (libvirt, QEMU, the engine while it stops) does not answer; later it may.
    Unavailable,
    /// A defect of ours, or damage.
    Internal,
}

impl ApiErrorKind {
    /// Lists every kind.
    pub const ALL: [Self; 8] = [
        Self::NotFound,
        Self::AlreadyExists,
        Self::InvalidArgument,
        Self::FailedPrecondition,
        Self::ResourceExhausted,
        Self::PermissionDenied,
        Self::Unavailable,
        Self::Internal,
    ];
}

/// An answer that is an error: its kind, a sentence, and the cure where one is known.
///
/// `what` and `hint` start in lower case and end without a full stop, as they are printed after
/// `error: ` and `hint: `. `what` holds its source's text already.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct ApiError {
    /// The sort of error.
    pub kind: ApiErrorKind,
    /// What is wrong.
    pub what: String,
    /// What the user can do about it.
    pub hint: Option<String>,
}

impl ApiError {
    /// Makes an error without a hint.
    pub fn new(kind: ApiErrorKind, what: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
            hint: None,
        }
    }

    /// Adds the cure.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// The result of every engine call.
pub type ApiResult<T> = Result<T, ApiError>;

/// What the daemon serves: one blocking method for every call of the API.
///
/// Methods are called from many threads at once. A method may block for as long as its work takes; long
/// work is started as a job and polled. A panic in one becomes [`ApiErrorKind::Internal`] for its caller.
#[expect(
    missing_docs,
    reason = "each method is the call of the same name in proto/virtcdp.proto"
)]
pub trait Engine: Send + Sync + 'static {
    /// Returns the version of the harbor's format this engine writes.
    fn format_version(&self) -> u32;
    /// Returns the daemon's state; `version`, `pid` and `started_ns` are filled in by the service.
    fn status(&self) -> ApiResult<StatusReply>;
    /// Returns all figures in Prometheus' text format, as they were seen last: it waits for nothing.
    fn metrics(&self) -> String;

    fn protect(&self, request: ProtectRequest) -> ApiResult<Machine>;
    fn unprotect(&self, request: UnprotectRequest) -> ApiResult<()>;
    fn suspend(&self, request: MachineRequest) -> ApiResult<Machine>;
    fn resume(&self, request: MachineRequest) -> ApiResult<Machine>;
    fn list_machines(&self) -> ApiResult<MachineList>;
    fn get_machine(&self, request: MachineRequest) -> ApiResult<Machine>;

    fn list_points(&self, request: ListPointsRequest) -> ApiResult<PointList>;
    fn create_point(&self, request: CreatePointRequest) -> ApiResult<CreatePointReply>;

    fn lock_points(&self, request: PointsRequest) -> ApiResult<PointChanges>;
    fn unlock_points(&self, request: PointsRequest) -> ApiResult<PointChanges>;
    fn label_point(&self, request: LabelPointRequest) -> ApiResult<PointChanges>;
    fn delete_points(&self, request: PointsRequest) -> ApiResult<PointChanges>;

    fn list_policies(&self) -> ApiResult<PolicyList>;
    fn get_policy(&self, request: PolicyRequest) -> ApiResult<Policy>;
    fn set_policy(&self, request: SetPolicyRequest) -> ApiResult<Policy>;
    fn assign_policy(&self, request: AssignPolicyRequest) -> ApiResult<Machine>;
    fn preview_policy(&self, request: PreviewPolicyRequest) -> ApiResult<PolicyPreview>;

    fn verify(&self, request: VerifyRequest) -> ApiResult<Job>;
    fn get_space(&self, request: SpaceRequest) -> ApiResult<Space>;

    fn open_view(&self, request: OpenViewRequest) -> ApiResult<View>;
    fn list_views(&self) -> ApiResult<ViewList>;
    fn close_view(&self, request: CloseViewRequest) -> ApiResult<()>;

    fn export(&self, request: ExportRequest) -> ApiResult<Job>;
    fn get_job(&self, request: JobRequest) -> ApiResult<Job>;
    fn cancel_job(&self, request: JobRequest) -> ApiResult<Job>;

    fn takeover(&self, request: TakeoverRequest) -> ApiResult<TakeoverReply>;
    fn list_takeovers(&self) -> ApiResult<TakeoverList>;
    fn discard_takeover(&self, request: TakeoverNameRequest) -> ApiResult<()>;
    fn commit_takeover(&self, request: TakeoverNameRequest) -> ApiResult<Job>;

    fn run_drill(&self, request: DrillRequest, peer: Peer) -> ApiResult<Job>;
    fn list_drills(&self, request: ListDrillsRequest) -> ApiResult<DrillList>;
    fn get_drill_document(&self, request: DrillDocumentRequest) -> ApiResult<DrillDocument>;
    fn discard_drill(&self, request: DrillIdRequest) -> ApiResult<()>;
    fn bisect(&self, request: BisectRequest, peer: Peer) -> ApiResult<Job>;
    fn takeover_group(&self, request: TakeoverGroupRequest) -> ApiResult<Job>;

    /// Hears from libvirt's hook that something happens to a domain; there is nothing it can refuse.
    fn hint_domain(&self, hint: DomainHint);

    /// Leaves everything to a successor that comes at once; no call comes after it. Guests may wait meanwhile.
    ///
    /// Called once, as [`shutdown`](Self::shutdown) and instead of it.
    fn hand_over(&self);

    /// Puts everything down cleanly; no call comes after it.
    ///
    /// Called once, on a thread of its own; the daemon waits for it up to its stop deadline and then
    /// exits whatever it does.
    fn shutdown(&self);
}
