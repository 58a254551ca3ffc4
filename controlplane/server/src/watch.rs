//! Streams of changes: what exists or what was missed first, then what happens.

use std::{sync::Arc, time::Duration};

use basalt_core::{ClientRequest, Event, EventKind, Page, Read, ReadResult, Reply, RequestError};
use basalt_model::{Revision, State};
use basalt_proto::api::{self, watch_response};
use tokio::{
    sync::{Semaphore, broadcast, mpsc},
    time::{Instant, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::{
    api::{node_put, snapshot_put, volume_put},
    driver::About,
    edge::{self, Edge},
    errors,
};

/// Watches at the same time; more are told that the member is overloaded.
const WATCHES_MAX: usize = 1_024;
/// Messages that wait for a slow watcher, besides those that wait in the driver.
const QUEUE_MAX: usize = 256;
/// Longest silence of a stream.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// The watches of a member.
#[derive(Debug, Clone)]
pub(crate) struct Watches {
    permits: Arc<Semaphore>,
}

/// Why a watch does not go on.
enum End {
    /// Nobody listens any more.
    Gone,
    /// The watcher must begin anew: what it saw last is too old, or from elsewhere.
    Anew,
    /// The watcher was slower than events came: go on from what it has.
    Behind,
    /// It cannot be served here and now.
    Failed(Box<Status>),
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        End::Failed(Box::new(status))
    }
}

impl Watches {
    pub(crate) fn new() -> Self {
        Self { permits: Arc::new(Semaphore::new(WATCHES_MAX)) }
    }

    /// Starts a stream.
    pub(crate) fn start(
        &self,
        edge: Edge,
        request: api::WatchRequest,
    ) -> Result<ReceiverStream<Result<api::WatchResponse, Status>>, Status> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| {
            errors::status(
                Code::ResourceExhausted,
                api::Reason::Overloaded,
                "the member has too many watches",
            )
        })?;
        let (out, stream) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(async move {
            let gauge = metrics::gauge!("basalt_control_watches");
            gauge.increment(1);
            let (seen, origin) = (Revision(request.from_revision), Origin::of(&request));
            let mut watch = Watch { edge, out, seen, origin, place: api::WatchProgress::default() };
            watch.run().await;
            gauge.decrement(1);
            drop(permit);
        });
        Ok(ReceiverStream::new(stream))
    }
}

struct Watch {
    edge: Edge,
    out: mpsc::Sender<Result<api::WatchResponse, Status>>,
    /// Everything up to this revision was sent. 0: nothing.
    seen: Revision,
    /// Where `seen` is from, until that was checked.
    origin: Option<Origin>,
    /// Where the revisions of this stream are from.
    place: api::WatchProgress,
}

/// Where the revision that a watcher comes with is from.
#[derive(Debug)]
struct Origin {
    cluster_id: String,
    incarnation: u64,
}

impl Origin {
    /// What the watcher says; `None` if it does not know, or has no revision.
    fn of(request: &api::WatchRequest) -> Option<Self> {
        let known = request.from_revision != 0 && request.incarnation != 0;
        known.then(|| Self { cluster_id: request.cluster_id.clone(), incarnation: request.incarnation })
    }
}

impl Watch {
    async fn run(&mut self) {
        loop {
            match self.follow().await {
                End::Gone => return,
                End::Anew => self.seen = Revision(0),
                End::Behind => {}
                End::Failed(status) => {
                    // The last word; nobody may be listening.
                    drop(self.out.send(Err(*status)).await);
                    return;
                }
            }
        }
    }

    async fn follow(&mut self) -> End {
        match self.try_follow().await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn try_follow(&mut self) -> Result<std::convert::Infallible, End> {
        // Subscribed before anything is read, so that nothing falls between.
        let mut events = self.edge.driver.events();
        self.check_origin().await?;
        if self.seen == Revision(0) {
            self.list().await?;
        }
        self.catch_up().await?;
        self.note_place().await?;
        self.progress().await?;
        let mut quiet_until = Instant::now() + PROGRESS_INTERVAL;
        loop {
            tokio::select! {
                turn = events.recv() => match turn {
                    Ok(turn) => {
                        let seen = self.seen;
                        for event in turn.iter().filter(|event| event.revision > seen) {
                            self.send_event(event.clone()).await?;
                            self.seen = event.revision;
                        }
                        // One progress for a burst.
                        if events.is_empty() && self.seen > seen {
                            self.progress().await?;
                            quiet_until = Instant::now() + PROGRESS_INTERVAL;
                        }
                    }
                    Err(broadcast::error::RecvError::Lagged(_)) => return Err(End::Behind),
                    Err(broadcast::error::RecvError::Closed) => return Err(Self::stopped()),
                },
                () = sleep_until(quiet_until) => {
                    if self.edge.driver.status().borrow().leader.is_none() {
                        let status = errors::no_leader("this member has no leader: what it shows may be old", None);
                        return Err(status.into());
                    }
                    self.progress().await?;
                    quiet_until = Instant::now() + PROGRESS_INTERVAL;
                }
                () = self.out.closed() => return Err(End::Gone),
            }
        }
    }

    /// Begins anew if the watcher comes from another cluster or incarnation.
    async fn check_origin(&mut self) -> Result<(), End> {
        let Some(origin) = self.origin.take() else { return Ok(()) };
        let (_, ReadResult::Cluster(view)) = self.edge.read(Read::Cluster).await? else {
            return Err(edge::mismatch().into());
        };
        let cluster_id = view.cluster.map(|cluster| cluster.to_string()).unwrap_or_default();
        if (origin.cluster_id, origin.incarnation) != (cluster_id, view.incarnation.0) {
            return Err(End::Anew);
        }
        Ok(())
    }

    /// Notes where the revisions are from. That changes only with a snapshot, after which the watch begins anew.
    async fn note_place(&mut self) -> Result<(), End> {
        let look = |state: &State, _: &basalt_core::Status| api::WatchProgress {
            cluster_id: state.cluster().map(|cluster| cluster.to_string()).unwrap_or_default(),
            incarnation: state.incarnation().0,
        };
        self.place = self.edge.driver.inspect(look).await.map_err(errors::refused)?;
        Ok(())
    }

    /// Everything that exists. Afterwards `seen` is the revision of the first page: later changes of later pages come again.
    async fn list(&mut self) -> Result<(), End> {
        self.send(Revision(0), watch_response::Event::Reset(api::WatchReset {})).await?;
        let mut first = None;
        let mut after = None;
        loop {
            let (revision, result) = self.edge.read(Read::Nodes(Page { after, limit: 0 })).await?;
            let ReadResult::Nodes { items, next } = result else { return Err(edge::mismatch().into()) };
            first.get_or_insert(revision);
            for node in items {
                self.send(Revision(0), node_put(&node)).await?;
            }
            match next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        after = None;
        loop {
            let (_, result) = self.edge.read(Read::Volumes(Page { after, limit: 0 })).await?;
            let ReadResult::Volumes { items, next } = result else { return Err(edge::mismatch().into()) };
            for volume in items {
                self.send(Revision(0), volume_put(&volume)).await?;
            }
            match next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        after = None;
        loop {
            let (_, result) = self.edge.read(Read::Snapshots(Page { after, limit: 0 })).await?;
            let ReadResult::Snapshots { items, next } = result else { return Err(edge::mismatch().into()) };
            for snapshot in items {
                self.send(Revision(0), snapshot_put(&snapshot)).await?;
            }
            match next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        self.seen = first.unwrap_or_default();
        Ok(())
    }

    /// What happened since `seen`.
    async fn catch_up(&mut self) -> Result<(), End> {
        let watch = ClientRequest::Watch { from: Some(self.seen) };
        let answer = self.edge.driver.ask(watch, About::Nothing).await.map_err(errors::refused)?;
        match answer.reply {
            Reply::Watching { revision, backlog } => {
                for event in backlog {
                    self.send_event(event).await?;
                }
                self.seen = self.seen.max(revision);
                Ok(())
            }
            Reply::Failed(RequestError::TooOld { .. } | RequestError::Ahead { .. }) => Err(End::Anew),
            Reply::Failed(error) => Err(errors::failed(&error, None).into()),
            Reply::Done { .. } | Reply::Read { .. } | Reply::Transferring { .. } => {
                Err(edge::mismatch().into())
            }
        }
    }

    async fn send_event(&self, event: Event) -> Result<(), End> {
        let message = match event.kind {
            EventKind::Node(node) => node_put(&node),
            EventKind::NodeRemoved(name) => watch_response::Event::NodeDeleted(name.to_string()),
            EventKind::Volume(volume) => volume_put(&volume),
            EventKind::VolumeRemoved { id, name } => {
                watch_response::Event::VolumeDeleted(api::VolumeDeleted {
                    id: id.to_string(),
                    name: name.to_string(),
                })
            }
            EventKind::Snapshot(snapshot) => snapshot_put(&snapshot),
            EventKind::SnapshotRemoved { id, name } => {
                watch_response::Event::SnapshotDeleted(api::SnapshotDeleted {
                    id: id.to_string(),
                    name: name.to_string(),
                })
            }
            EventKind::Cluster => return Ok(()),
            EventKind::Resync => return Err(End::Anew),
        };
        self.send(event.revision, message).await
    }

    async fn progress(&self) -> Result<(), End> {
        self.send(self.seen, watch_response::Event::Progress(self.place.clone())).await
    }

    async fn send(&self, revision: Revision, event: watch_response::Event) -> Result<(), End> {
        let message = api::WatchResponse { revision: revision.0, event: Some(event) };
        self.out.send(Ok(message)).await.map_err(|_| End::Gone)
    }

    fn stopped() -> End {
        errors::refused(crate::driver::Refused::Stopped).into()
    }
}
