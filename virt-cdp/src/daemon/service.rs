//! The gRPC service: every call goes to the engine, on a thread that may block.
//!
//! Invariant: whatever the engine does - answers, fails, panics - its caller gets an answer and the
//! daemon lives on.

use std::sync::Arc;

use tonic::{
    Code, Request, Response, Status,
    metadata::{MetadataMap, MetadataValue},
    service::Interceptor,
};

use super::{peer::Peer, socket::Access};
use crate::api::{
    ApiError, ApiErrorKind, ApiResult, Engine, HINT_KEY,
    v1::{self, virt_cdp_server::VirtCdp},
};

/// Serves an engine.
#[derive(Clone)]
pub struct Service {
    engine: Arc<dyn Engine>,
    started_ns: i64,
}

impl Service {
    /// Makes the service of `engine`; its start time is now.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>) -> Self {
        Self {
            engine,
            started_ns: i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(0),
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        call: &'static str,
        work: impl FnOnce(&dyn Engine) -> ApiResult<T> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let engine = Arc::clone(&self.engine);
        match tokio::task::spawn_blocking(move || work(engine.as_ref())).await {
            Ok(Ok(answer)) => Ok(Response::new(answer)),
            Ok(Err(error)) => {
                tracing::info!(call, kind = ?error.kind, what = error.what, "a call was refused");
                Err(status_of(&error))
            }
            Err(failure) => {
                tracing::error!(call, %failure, "a call failed by a defect of virtcdpd");
                let error = ApiError::new(
                    ApiErrorKind::Internal,
                    format!("virtcdpd failed in {call} by a defect"),
                )
                .hint("it goes on; its log has the place (journalctl -u virtcdpd)");
                Err(status_of(&error))
            }
        }
    }
}

/// Turns an engine's error into a gRPC status.
#[must_use]
pub fn status_of(error: &ApiError) -> Status {
    let code = match error.kind {
        ApiErrorKind::NotFound => Code::NotFound,
        ApiErrorKind::AlreadyExists => Code::AlreadyExists,
        ApiErrorKind::InvalidArgument => Code::InvalidArgument,
        ApiErrorKind::FailedPrecondition => Code::FailedPrecondition,
        ApiErrorKind::ResourceExhausted => Code::ResourceExhausted,
        ApiErrorKind::PermissionDenied => Code::PermissionDenied,
        ApiErrorKind::Unavailable => Code::Unavailable,
        ApiErrorKind::Internal => Code::Internal,
    };
    let mut metadata = MetadataMap::new();
    if let Some(hint) = &error.hint {
        metadata.insert_bin(HINT_KEY, MetadataValue::from_bytes(hint.as_bytes()));
    }
    Status::with_metadata(code, error.what.clone(), metadata)
}

/// Refuses every request on a connection whose peer is not let in.
#[derive(Debug, Clone, Copy)]
pub struct Guard;

impl Interceptor for Guard {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        match request.extensions().get::<Access>() {
            Some(access) if access.admitted => Ok(request),
            access => {
                let who = access
                    .map(|access| format!("user {} ", access.peer.uid))
                    .unwrap_or_default();
                let error = ApiError::new(
                    ApiErrorKind::PermissionDenied,
                    format!("{who}may not use virtcdpd"),
                )
                .hint("be root, or a member of the group that owns its socket");
                Err(status_of(&error))
            }
        }
    }
}

/// Writes the calls that go to the engine as they are: `name(Request) -> Reply`, with the engine's call.
macro_rules! calls {
    ($($name:ident($request:ty) -> $reply:ty = |$engine:ident, $message:pat_param| $work:expr;)*) => {
        #[tonic::async_trait]
        impl VirtCdp for Service {
            async fn version(
                &self,
                _: Request<v1::VersionRequest>,
            ) -> Result<Response<v1::VersionReply>, Status> {
                let version = env!("CARGO_PKG_VERSION").to_owned();
                self.blocking("version", |engine| {
                    Ok(v1::VersionReply { version, format_version: engine.format_version() })
                })
                .await
            }

            async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
                let started_ns = self.started_ns;
                self.blocking("status", move |engine| {
                    let version = env!("CARGO_PKG_VERSION").to_owned();
                    let pid = std::process::id();
                    Ok(v1::StatusReply { version, pid, started_ns, ..engine.status()? })
                })
                .await
            }

            async fn hint_domain(&self, request: Request<v1::DomainHint>) -> Result<Response<v1::Empty>, Status> {
                let peer = request.extensions().get::<Access>().map(|access| access.peer.uid);
                if peer != Some(0) {
                    let what = "only root may tell what happens to domains";
                    return Err(status_of(&ApiError::new(ApiErrorKind::PermissionDenied, what)));
                }
                let hint = request.into_inner();
                self.blocking("hint_domain", move |engine| {
                    engine.hint_domain(hint);
                    Ok(v1::Empty {})
                })
                .await
            }

            async fn run_drill(&self, request: Request<v1::DrillRequest>) -> Result<Response<v1::Job>, Status> {
                let (peer, message) = (peer_of(&request)?, request.into_inner());
                self.blocking("run_drill", move |engine| engine.run_drill(message, peer)).await
            }

            async fn bisect(&self, request: Request<v1::BisectRequest>) -> Result<Response<v1::Job>, Status> {
                let (peer, message) = (peer_of(&request)?, request.into_inner());
                self.blocking("bisect", move |engine| engine.bisect(message, peer)).await
            }

            $(async fn $name(&self, request: Request<$request>) -> Result<Response<$reply>, Status> {
                let $message = request.into_inner();
                self.blocking(stringify!($name), move |$engine| $work).await
            })*
        }
    };
}

calls! {
    protect(v1::ProtectRequest) -> v1::Machine = |engine, message| engine.protect(message);
    unprotect(v1::UnprotectRequest) -> v1::Empty = |engine, message| engine.unprotect(message).map(empty);
    suspend(v1::MachineRequest) -> v1::Machine = |engine, message| engine.suspend(message);
    resume(v1::MachineRequest) -> v1::Machine = |engine, message| engine.resume(message);
    list_machines(v1::Empty) -> v1::MachineList = |engine, _| engine.list_machines();
    get_machine(v1::MachineRequest) -> v1::Machine = |engine, message| engine.get_machine(message);
    list_points(v1::ListPointsRequest) -> v1::PointList = |engine, message| engine.list_points(message);
    create_point(v1::CreatePointRequest) -> v1::CreatePointReply = |engine, message| engine.create_point(message);
    lock_points(v1::PointsRequest) -> v1::PointChanges = |engine, message| engine.lock_points(message);
    unlock_points(v1::PointsRequest) -> v1::PointChanges = |engine, message| engine.unlock_points(message);
    label_point(v1::LabelPointRequest) -> v1::PointChanges = |engine, message| engine.label_point(message);
    delete_points(v1::PointsRequest) -> v1::PointChanges = |engine, message| engine.delete_points(message);
    list_policies(v1::Empty) -> v1::PolicyList = |engine, _| engine.list_policies();
    get_policy(v1::PolicyRequest) -> v1::Policy = |engine, message| engine.get_policy(message);
    set_policy(v1::SetPolicyRequest) -> v1::Policy = |engine, message| engine.set_policy(message);
    assign_policy(v1::AssignPolicyRequest) -> v1::Machine = |engine, message| engine.assign_policy(message);
    preview_policy(v1::PreviewPolicyRequest) -> v1::PolicyPreview = |engine, message| engine.preview_policy(message);
    open_view(v1::OpenViewRequest) -> v1::View = |engine, message| engine.open_view(message);
    list_views(v1::Empty) -> v1::ViewList = |engine, _| engine.list_views();
    close_view(v1::CloseViewRequest) -> v1::Empty = |engine, message| engine.close_view(message).map(empty);
    export(v1::ExportRequest) -> v1::Job = |engine, message| engine.export(message);
    verify(v1::VerifyRequest) -> v1::Job = |engine, message| engine.verify(message);
    get_job(v1::JobRequest) -> v1::Job = |engine, message| engine.get_job(message);
    cancel_job(v1::JobRequest) -> v1::Job = |engine, message| engine.cancel_job(message);
    takeover(v1::TakeoverRequest) -> v1::TakeoverReply = |engine, message| engine.takeover(message);
    list_takeovers(v1::Empty) -> v1::TakeoverList = |engine, _| engine.list_takeovers();
    discard_takeover(v1::TakeoverNameRequest) -> v1::Empty =
        |engine, message| engine.discard_takeover(message).map(empty);
    commit_takeover(v1::TakeoverNameRequest) -> v1::Job = |engine, message| engine.commit_takeover(message);
    list_drills(v1::ListDrillsRequest) -> v1::DrillList = |engine, message| engine.list_drills(message);
    get_drill_document(v1::DrillDocumentRequest) -> v1::DrillDocument =
        |engine, message| engine.get_drill_document(message);
    discard_drill(v1::DrillIdRequest) -> v1::Empty = |engine, message| engine.discard_drill(message).map(empty);
    takeover_group(v1::TakeoverGroupRequest) -> v1::Job = |engine, message| engine.takeover_group(message);
    get_space(v1::SpaceRequest) -> v1::Space = |engine, message| engine.get_space(message);
}

fn empty((): ()) -> v1::Empty {
    v1::Empty {}
}

/// Who calls: programs of theirs are run as them.
fn peer_of<T>(request: &Request<T>) -> Result<Peer, Status> {
    let access = request.extensions().get::<Access>();
    access.map(|access| access.peer).ok_or_else(|| {
        let what = "it is not known who calls";
        status_of(&ApiError::new(ApiErrorKind::PermissionDenied, what))
    })
}
